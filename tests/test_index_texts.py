"""Indexes of galleries whose identities and cameras are text: what numbers give, and the text is kept."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from conftest import features, shell
from forks import forked, forked_together

import blurrerank as br

KINDS = ("probe_ids", "gallery_ids", "probe_cams", "gallery_cams")


def as_texts(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same labels as text: junk and distractors keep their numbers, camera 10 comes before camera 2."""
    named = dict(arrays)
    for kind in KINDS:
        keep = (-1, 0) if kind.endswith("ids") else ()
        word = "person" if kind.endswith("ids") else "camera"
        named[kind] = np.array(
            [str(number) if number in keep else f"{word} {number}" for number in arrays[kind]], dtype=object
        )
    return named


@pytest.fixture
def both(write):
    """Two files with the same features, whose labels are numbers and text."""
    arrays = features(probes=20, gallery=90)
    arrays["probe_ids"][:2], arrays["probe_cams"][:3] = 17, 10  # whom and what the gallery lacks
    arrays["gallery_cams"][arrays["gallery_cams"] == 1] = 12
    return write("numbers.h5", **arrays), write("texts.h5", **as_texts(arrays))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--method", "center+camera-graph"),
        ("--method", "camera-graph", "--ann", "ivf"),
    ],
)
def test_answers_are_those_of_numbers(both, cli, options):
    said = []
    for feats in both:
        assert cli("index", feats, "-o", "i.h5", "--force", *options)[0] == 0
        code, out, _ = cli("run", feats, "--index", "i.h5", "-o", "lists.h5", "--force", "--json")
        assert code == 0
        with h5py.File("lists.h5") as file:
            said.append((file["indices"][()].tolist(), file["scores"][()].tolist(), json.loads(out)["after"]))
    assert said[0] == said[1]
    assert said[1][2]["mAP"] > 0.3
    index = br.GalleryIndex.open("i.h5")
    data = index.features(br.load(both[1]).probe)
    for side, arrays in (("probe", data.probe), ("gallery", data.gallery)):
        with h5py.File(both[1]) as file:
            for kind, labels in (("ids", arrays.ids), ("cams", arrays.cams)):
                texts = [data.texts[kind].get(number, str(number)) for number in labels.tolist()]
                assert texts == file[f"{side}/{kind}"].asstr()[()].tolist()
    assert set(index.gallery.ids[:4].tolist()) == {-1, 0}


@pytest.mark.parametrize("ann", [(), ("--ann", "ivf")])
def test_items_are_added_and_removed(write, cli, ann):
    arrays = as_texts(features(probes=20, gallery=90, dim=8))
    more = as_texts(features(seed=1, probes=20, gallery=60, dim=8))
    more["gallery_ids"][:30], more["gallery_cams"][5:] = "somebody new", "camera of theirs"
    first, second = write("first.h5", **arrays), write("second.h5", **more)
    method = ("--method", "camera-graph")
    assert cli("index", first, "-o", "i.h5", *method, *ann)[0] == 0
    assert cli("index", second, "-o", "i.h5", "--append")[0] == 0
    assert cli("index", "-o", "i.h5", "--remove", "3-20,100")[0] == 0
    left = np.setdiff1d(np.arange(150), [*range(3, 21), 100])

    def texts_of(index: br.GalleryIndex) -> list[tuple[str, str]]:
        known, side = index.gallery.texts, index.gallery
        return [
            (known["ids"].get(one, str(one)), known["cams"][cam])
            for one, cam in zip(side.ids.tolist(), side.cams.tolist(), strict=True)
        ]

    every = [np.concatenate([arrays[kind], more[kind]]) for kind in ("gallery_ids", "gallery_cams")]
    expected = list(zip(*(values[left].tolist() for values in every), strict=True))
    assert texts_of(br.GalleryIndex.open("i.h5")) == expected
    if ann:
        assert cli("index", "-o", "i.h5", "--compact")[0] == 0
        assert texts_of(br.GalleryIndex.open("i.h5")) == expected
    assert cli("index", "-o", "i.h5", "--remove", f"72-{len(expected) - 1}")[0] == 0
    assert cli("index", "-o", "i.h5", "--compact")[0] == 0
    with h5py.File("i.h5") as file:  # nothing is left of those who were removed
        assert "somebody new" not in file["texts/ids/texts"].asstr()[()].tolist()
    code, out, _ = cli("run", second, "--index", "i.h5", "--json", "-o", "o.h5")
    assert code == 0
    assert json.loads(out)["after"]["valid_probes"] > 10


def test_probes_of_another_index_are_numbered_anew(tmp_path):
    arrays = as_texts(features())
    sides = {
        name: br.Side(arrays[name], arrays[f"{name}_ids"], arrays[f"{name}_cams"], label=name)
        for name in ("probe", "gallery")
    }
    one = br.build_index(sides["gallery"], tmp_path / "one.h5")
    some = br.build_index(sides["gallery"].part(slice(57, None)), tmp_path / "some.h5")
    probe = one.features(sides["probe"]).probe
    assert probe.texts["ids"] != some.gallery.texts["ids"]
    data = some.features(probe)
    assert [data.texts["ids"][number] for number in data.probe.ids.tolist()] == list(arrays["probe_ids"])
    numbers = br.build_index(features()["gallery"], tmp_path / "numbers.h5")
    assert numbers.gallery.texts == {}


def test_text_and_numbers_do_not_mix(both, cli):
    numbers, texts = both
    assert cli("index", texts, "-o", "t.h5")[0] == 0
    assert cli("index", numbers, "-o", "n.h5")[0] == 0
    why = "are numbers, and those of t.h5 are text: use the same kind in both"
    code, _, err = cli("run", numbers, "--index", "t.h5")
    assert (code, err) == (1, f"error: {numbers}::/probe/ids {why}\n")
    code, _, err = cli("index", numbers, "-o", "t.h5", "--append")
    assert (code, err) == (1, f"error: {numbers}::/gallery/ids {why}\n")
    why = "are text, and those of n.h5 are numbers: use the same kind in both"
    code, _, err = cli("run", texts, "--index", "n.h5")
    assert (code, err) == (1, f"error: {texts}::/probe/ids {why}\n")
    code, _, err = cli("index", texts, "-o", "n.h5", "--append")
    assert (code, err) == (1, f"error: {texts}::/gallery/ids {why}\n")
    for index, data in (("n.h5", br.load(texts)), ("t.h5", br.load(numbers))):
        with pytest.raises(br.InputError, match="use the same kind in both"):
            br.GalleryIndex.open(index).rerank(data.probe)


def test_cameras_on_a_stream_are_text(both, cli, tmp_path):
    _, texts = both
    assert cli("index", texts, "-o", "t.h5", "--method", "camera-graph")[0] == 0
    with h5py.File(texts) as file:
        rows, cams = file["probe/features"][:4].tolist(), file["probe/cams"].asstr()[:4].tolist()
    cams[2] = "a new one"
    lines = [json.dumps({"features": row, "cam": cam}) for row, cam in zip(rows, cams, strict=True)]
    lines.append(json.dumps({"features": rows[0], "cam": 3}))
    done = shell("run", "--index", "t.h5", "-", input="\n".join(lines) + "\n", cwd=tmp_path)
    *answers, refused = map(json.loads, done.stdout.splitlines())
    assert [len(answer["indices"]) for answer in answers] == [50] * 4
    assert refused["error"].endswith("cams are numbers, and those of t.h5 are text: use the same kind in both")
    data = br.GalleryIndex.open(tmp_path / "t.h5").rerank(
        br.Side(np.array(rows), cams=np.array(cams, dtype=object)), method="camera-graph", topn=50
    )
    assert [answer["indices"] for answer in answers] == data.indices.tolist()


def test_camera_images_make_further_cameras_known(both, write, cli):
    numbers, texts = both
    arrays = features(seed=3)
    arrays["probe_cams"][:] = 10
    for name, feats, some in (("n", numbers, arrays), ("t", texts, as_texts(arrays))):
        images = write("images.h5", **some)
        build = ("index", feats, "-o", f"{name}.h5", "--method", "center+camera-graph")
        assert cli(*build, "--camera-images", images)[0] == 0
        assert cli("run", feats, "--index", f"{name}.h5", "-o", f"{name}.lists.h5")[0] == 0
    with h5py.File("n.lists.h5") as one, h5py.File("t.lists.h5") as other:
        np.testing.assert_array_equal(one["scores"][()], other["scores"][()])
    assert "cameras known from --camera-images: camera 10" in cli("info", "t.h5")[1]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_processes_build_and_answer_together(both, tmp_path):
    _, texts = both
    build = ("index", texts, "--method", "center+camera-graph")
    assert forked(*build, "-o", "alone.h5", cwd=tmp_path).returncode == 0
    done = forked_together(2, *build, "-o", "together.h5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "together.h5").read_bytes() == (tmp_path / "alone.h5").read_bytes()
    run = ("run", texts, "--index", "alone.h5")
    alone = forked(*run, "-o", "a.h5", cwd=tmp_path)
    done = forked_together(2, *run, "-o", "b.h5", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, alone.stdout), done.stderr
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "a.h5").read_bytes()


def test_tracks_keep_the_text(both, write, tmp_path):
    arrays = as_texts(features())
    arrays |= {"gallery_tracks": arrays["gallery_ids"] + arrays["gallery_cams"]}
    data = br.load(write("tracks.h5", **arrays)).by_track()
    index = br.build_index(data.gallery, tmp_path / "i.h5")
    assert set(index.gallery.texts["ids"].values()) >= {f"person {number}" for number in range(1, 7)}
    assert index.features(data.probe).probe.ids.tolist() == data.probe.ids.tolist()


@pytest.mark.parametrize("method", ["k-reciprocal-online", "center+camera-graph"])
def test_lists_from_an_index_are_measured_as_they_are(both, write, cli, method):
    """An index numbers text as it comes, a file in sorted order; and only the index knows further cameras."""
    images = write("images.h5", **as_texts(features(seed=3) | {"probe_cams": np.full(12, 10)}))
    further = ("--camera-images", images) if method.startswith("center") else ()
    for number, feats in enumerate(both):
        assert (
            cli("index", feats, "-o", f"{number}.h5", "--method", method, *(further if number else ()))[0] == 0
        )
        code, out, _ = cli("run", feats, "--index", f"{number}.h5", "-o", f"{number}.lists.h5", "--json")
        assert code == 0
        measured = cli("eval", f"{number}.lists.h5", feats, "--json")
        assert json.loads(measured[1])["mAP"] == json.loads(out)["after"]["mAP"]
    if further:  # positions for another protocol are not in the file, and the method alone gives other lists
        code, _, err = cli("eval", "1.lists.h5", both[1], "--protocol", "cuhk03")
        assert (code, "the shortest list ends at rank 50 of 90" in err) == (0, True), err


def test_whole_numbers_that_are_text_are_numbers(write, cli):
    arrays = features()
    texts = arrays | {
        kind: np.array([f"{number:04}" for number in arrays[kind]], dtype=object) for kind in KINDS
    }
    one, other = write("numbers.h5", **arrays), write("texts.h5", **texts)
    assert cli("index", other, "-o", "t.h5")[0] == 0
    index = br.GalleryIndex.open("t.h5")
    assert index.gallery.texts == {}
    for feats in (one, other):
        assert cli("run", feats, "--index", "t.h5", "-o", "o.h5", "--force")[0] == 0
        assert index.features(br.load(feats).probe).probe.ids.tolist() == arrays["probe_ids"].tolist()


def test_identities_that_take_the_place_of_text_stay(both):
    data = br.load(both[1])
    other = {side: 1000 + getattr(data, side).ids for side in ("probe", "gallery")}
    changed = br.FeatureSet(*(replace(getattr(data, side), ids=ids) for side, ids in other.items()))
    for side, ids in other.items():
        np.testing.assert_array_equal(getattr(changed, side).ids, ids)


def test_camera_images_of_features_are_text(both, write, cli):
    numbers, texts = both
    arrays = features(seed=3) | {"probe_cams": np.full(12, 10), "probe_ids": None}
    said = []
    for feats, some in ((numbers, arrays), (texts, as_texts(arrays | {"probe_ids": np.ones(12, int)}))):
        images = write("images.h5", **some)
        run = (
            "run",
            feats,
            "--method",
            "center+camera-graph",
            "--camera-images",
            images,
            "--force",
            "-o",
            "o.h5",
        )
        code, out, _ = cli(*run, "--json")
        assert code == 0
        said.append(json.loads(out)["after"])
    assert said[0] == said[1]
    code, _, err = cli(
        "run", numbers, "--method", "center+camera-graph", "--camera-images", images, "-o", "p.h5"
    )
    why = "are text, and those of numbers.h5::/gallery are numbers: use the same kind in both"
    assert (code, err.replace(str(numbers), numbers.name)) == (1, f"error: {images}::/probe/cams {why}\n")


@pytest.mark.filterwarnings("ignore:camera .* has no images in the gallery")
def test_tuning_takes_camera_images_by_text(both):
    numbers, texts = both
    # Identities are halved in the order of their numbers: only cameras differ here.
    one, other = br.load(numbers), br.load(texts)
    sides = (replace(getattr(other, name), ids=getattr(one, name).ids) for name in ("probe", "gallery"))
    further = br.Side(features(seed=3)["probe"], cams=["camera 10"] * 12)
    tunings = [(one, replace(further, cams=np.full(12, 10))), (br.FeatureSet(*sides), further)]
    told = [
        br.tune(data, "center+camera-graph", {"k2o": [2, 3]}, camera_images=images).rows
        for data, images in tunings
    ]
    assert told[0] == told[1]


def test_cameras_in_warnings_are_called_by_their_text(both, cli):
    assert cli("index", both[1], "-o", "t.h5", "--method", "center+camera-graph")[0] == 0
    assert (
        "warning: camera 'camera 10' has no images" in cli("run", both[1], "--index", "t.h5", "-o", "o.h5")[2]
    )


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_file_holds_is_refused(text, tmp_path):
    ids = np.array(["a", text, "b"], dtype=object)
    with pytest.raises(
        br.InputError, match=r"gallery/ids has .* in row 1: expected text that utf-8 can encode"
    ):
        br.build_index(br.Side(np.eye(3), ids, label="gallery"), tmp_path / "i.h5")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda numbers, texts: (numbers[[0, 0, *range(2, len(numbers))]], texts),
        lambda numbers, texts: (numbers, [texts[0], texts[0], *texts[2:]]),
        lambda numbers, texts: (numbers * 0, texts),
        lambda numbers, texts: (numbers + (2**63 - 1 - len(numbers)), texts),
    ],
)
def test_texts_of_other_programs_are_checked(spoil, both, cli):
    assert cli("index", both[1], "-o", "t.h5")[0] == 0
    with h5py.File("t.h5", "r+") as file:
        at = file["texts/ids"]
        numbers, texts = spoil(at["numbers"][()], at["texts"].asstr()[()].tolist())
        at["numbers"][...], at["texts"][...] = numbers, texts
        at["numbers"].attrs["crc32"] = zlib.crc32(at["numbers"][()].data)
        at["texts"].attrs["crc32"] = zlib.crc32("\0".join(texts).encode())
    code, _, err = cli("run", both[1], "--index", "t.h5")
    assert code == 1
    assert "texts/ids has values that are invalid in an index" in err


def test_damaged_texts_are_found(both, cli):
    assert cli("index", both[1], "-o", "t.h5")[0] == 0
    with h5py.File("t.h5", "r+") as file:
        texts = file["texts/ids/texts"]
        texts[0] = "nobody"
    code, _, err = cli("run", both[1], "--index", "t.h5")
    assert code == 1
    assert "texts/ids/texts do not match their checksum" in err
