"""Re-rank the example features as a library user would, and look at one probe.

python examples/quickstart.py
"""

from pathlib import Path

import blurrerank as br

data = br.load(Path(__file__).with_name("omniglot.h5"))
print(data)

before = br.rerank(data, method="cosine", topn=50)
after = br.rerank(data, method="lbr", topn=50, sigma=0.1)
for ranking in (before, after):
    metrics = br.evaluate(ranking, data)
    print(f"{ranking.method:6}  mAP {metrics.mAP:.4f}  rank-1 {metrics.rank(1):.4f}  mINP {metrics.mINP:.4f}")

# Where did it help most? Per-probe values are arrays, in the order of the probes.
gain = br.evaluate(after, data).ap - br.evaluate(before, data).ap
probe = int(gain.argmax())
print(f"\nprobe {data.probe.names[probe]}: AP {gain[probe]:+.3f}")
for ranking in (before, after):
    marks = ["+" if data.gallery.ids[item] == data.probe.ids[probe] else "." for item in ranking.indices[probe]]
    print(f"{ranking.method:6}  {''.join(marks)}")
