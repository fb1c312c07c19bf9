"""Started by torchrun from test_distributed.py: many runs in one group, since starting processes is slow.

torchrun ... torchrun_cases.py CASES.json
torchrun ... torchrun_cases.py --die MOMENT ARGUMENT...
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from blurrerank.cli import main
from blurrerank.compute.compute import Compute
from blurrerank.compute.processes import Group
from blurrerank.engine.request import Request
from blurrerank.engine.runs import Measurement, Output, rerank_to
from blurrerank.files import load_sharded
from blurrerank.methods import create


def run(cases: list[dict]) -> None:
    group = Group()
    group.connect("cpu")
    for case in cases:
        data = load_sharded(case["feats"], group=group, memory=case["memory"])
        outcome = rerank_to(
            Output(Path(case["output"]), case["format"]),
            data,
            create(case["method"], **case["params"]),
            Request(case["depth"]),
            Measurement(case["protocol"]),
            # One process takes float32 for so few probes.
            Compute.choose(memory=case["memory"], precision="bfloat16", group=group),
        )
        if group.rank == 0:
            Path(case["output"] + ".json").write_text(json.dumps(outcome.summary()))
    group.close()


def die(moment: str, arguments: list[str]) -> None:
    """The command line, in which the second process is killed the first time it comes to `moment`."""
    method = getattr(Group, moment)

    def dying(self, *arguments, **options):
        if self.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *arguments, **options)

    setattr(Group, moment, dying)
    main(arguments)


if __name__ == "__main__":
    if sys.argv[1] == "--die":
        die(sys.argv[2], sys.argv[3:])
    else:
        run(json.loads(Path(sys.argv[1]).read_text()))
