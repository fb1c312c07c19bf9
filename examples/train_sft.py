"""Train a small network with and without the spectral feature transformation, and measure what that gains.

python examples/train_sft.py

Half of the characters of omniglot.h5 train the network and the others test it. Three trainings differ only in
which features the classifier sees: those of the network (plain), those after the transformation (transformed),
or both. At test time the layer is dropped: all three networks are the same function, at the same cost.

The setting is that of Luo, Chen, Wang, Zhang, "Spectral Feature Transformation for Person Re-identification",
ICCV 2019, as in the authors' program, made small. docs/training.md explains the choices.
"""

import argparse
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import blurrerank as br

IMAGES = Path(__file__).with_name("omniglot.h5")
TRAININGS = ("plain", "transformed", "both")
BATCH = 128  # images
DIMENSIONS = 256
SCALE, MARGIN = 15, 0.3  # of the AM-softmax


def build_network():
    """Make the part that is kept: (n, 1, 26, 26) images to (n, 256) features."""
    widths = ((1, 32), (32, 64), (64, 128))
    blocks = [(nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths]
    return nn.Sequential(*sum(blocks, ()), nn.Flatten(), nn.Linear(128 * 4 * 4, DIMENSIONS))


class Classifier(nn.Module):
    """(n, 256) features to (n, identities) cosines; needed for training alone."""

    def __init__(self, identities):
        super().__init__()
        self.bottleneck = nn.Sequential(nn.Linear(DIMENSIONS, 128, bias=False), nn.BatchNorm1d(128), nn.PReLU())
        self.centres = nn.Parameter(torch.randn(identities, 128))

    def forward(self, features):
        return F.normalize(self.bottleneck(features)) @ F.normalize(self.centres).T


def am_softmax(cosines, labels):
    """Cross-entropy of scaled cosines, where that of the right identity has to win by a margin."""
    right = F.one_hot(labels, cosines.shape[1])
    return F.cross_entropy(SCALE * (cosines - MARGIN * right), labels)


def draw_batch(labels, k, generator):
    """Choose BATCH / k identities by chance, and k images of each."""
    identities = torch.randperm(int(labels.max()) + 1, generator=generator)[: BATCH // k]
    # Images by chance, but those of one identity together: then k from the front of each.
    shuffled = torch.randperm(len(labels), generator=generator)
    return torch.cat([shuffled[labels[shuffled] == identity][:k] for identity in identities])


def distort(images, generator):
    """Turn, scale and shift each image a little, so that a small set is not learnt by heart."""
    turn, scale, x, y = torch.randn(4, len(images), generator=generator)
    turn, scale = 0.2 * turn, 1 + 0.1 * scale
    cos, sin = scale * turn.cos(), scale * turn.sin()
    maps = torch.stack((cos, -sin, 0.1 * x, sin, cos, 0.1 * y), dim=1).view(-1, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train_network(training, images, labels, options, seed):
    """Train for options.epochs; a seed gives all trainings the same first weights, batches and distortions."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network, classifier = build_network(), Classifier(int(labels.max()) + 1)
    transform = br.SpectralFeatureTransform(sigma=options.sigma)

    steps = options.epochs * (len(labels) // BATCH)
    parameters = [*network.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=options.lr, momentum=0.9, weight_decay=5e-4)
    # Warm-up for a seventh of all steps, a tenth of the rate after four sevenths, a hundredth after five.
    factors = [
        min(1, 7 * (step + 1) / steps) * 0.1 ** ((7 * step >= 4 * steps) + (7 * step >= 5 * steps))
        for step in range(steps + 1)
    ]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[step])

    for _ in range(steps):
        rows = draw_batch(labels, options.k, generator)
        features, targets = network(distort(images[rows], generator)), labels[rows]
        if training == "transformed":
            features = transform(features)
        elif training == "both":
            features, targets = torch.cat((features, transform(features))), targets.repeat(2)
        loss = am_softmax(classifier(features), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def measure(network, sides):
    """mAP and rank-1 by cosine, then the same after local blurring, of {side: (images, ids, cams)}."""
    given = {}
    for side, (images, ids, cams) in sides.items():
        given |= {side: network(images).numpy(), f"{side}_ids": ids, f"{side}_cams": cams}
    data = br.FeatureSet.from_arrays(**given)
    metrics = [br.evaluate(br.rerank(data, method=method), data) for method in ("cosine", "lbr")]
    return [value for one in metrics for value in (one.mAP, one.rank(1))]


def read_images(identities):
    """Read {side: (images of 26 x 26 pixels, ids, cams)} of some identities."""
    sides = {}
    with h5py.File(IMAGES) as file:
        for name in ("probe", "gallery"):
            rows = np.isin(file[name]["ids"], identities)
            images, ids, cams = (file[name][what][rows] for what in ("images", "ids", "cams"))
            sides[name] = F.avg_pool2d(torch.from_numpy(images).unsqueeze(1) / 255, 2), ids, cams
    return sides


def print_row(training, seed, values):
    numbers = "  ".join(f"{value:7.4f}" for value in values)
    print(f"{training:11}  {seed:>4}  {numbers}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigma", type=float, default=0.1, help="temperature of the transformation")
    parser.add_argument("--k", type=int, default=8, help=f"images of each identity in a batch of {BATCH}")
    parser.add_argument("--lr", type=float, default=0.3, help="learning rate")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--validate", action="store_true", help="test on a third of the training characters")
    options = parser.parse_args()
    torch.set_num_threads(1)  # tensors this small gain nothing from more

    # Identities are split, not images. Junk (-1) and distractors (0) stand in the test gallery alone.
    with h5py.File(IMAGES) as file:
        learnt, tested = np.split(np.unique(file["probe/ids"]), 2)
    if options.validate:
        learnt, tested = np.split(learnt, [2 * len(learnt) // 3])
    else:
        tested = np.append(tested, [-1, 0])
    test = read_images(tested)
    images, ids, _ = zip(*read_images(learnt).values(), strict=True)
    images, labels = torch.cat(images), torch.from_numpy(np.searchsorted(learnt, np.concatenate(ids)))

    print("                    by cosine         after lbr")
    print("training     seed      mAP   rank-1      mAP   rank-1")
    results = np.empty((len(TRAININGS), options.seeds, 4))
    for row, training in enumerate(TRAININGS):
        for seed in range(options.seeds):
            network = train_network(training, images, labels, options, seed)
            results[row, seed] = measure(network, test)
            print_row(training, seed, results[row, seed])
    for title, rows in (("mean", results), ("gain", results[1:] - results[0])):  # over plain, seed by seed
        print()
        for training, values in zip(TRAININGS[-len(rows) :], rows, strict=True):
            print_row(training, title, values.mean(axis=0))
            if options.seeds > 1:
                print_row("", "sd", values.std(axis=0, ddof=1))


if __name__ == "__main__":
    main()
