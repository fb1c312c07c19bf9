"""Probes that arrive on standard input: answered in order, together where several have come."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest
from conftest import features, shell

import blurrerank as br
from blurrerank.cli.serving import arrived_together


def test_what_has_come_is_taken_together():
    came = threading.Event()

    def items():
        yield 0
        came.wait(20)
        yield from range(1, 10)

    batches = arrived_together(items(), 4)
    assert next(batches) == [0]  # without waiting for more
    came.set()
    time.sleep(0.5)
    assert list(batches) == [[1, 2, 3, 4], [5, 6, 7, 8], [9]]


def test_an_error_comes_after_what_came_before_it():
    def items():
        yield 1
        yield 2
        raise br.InputError("no more")

    seen = []
    with pytest.raises(br.InputError, match="no more"):
        for some in arrived_together(items(), 4):
            seen += some
    assert seen == [1, 2]


def test_no_items_are_no_batches():
    assert list(arrived_together([], 4)) == []


@pytest.mark.parametrize("ann", [None, "hnsw"])
def test_many_at_a_time_are_answered_as_each_alone(ann, tmp_path):
    arrays = features(probes=150)
    index = br.build_index(arrays["gallery"], tmp_path / "i.h5", ann=ann)
    lines, expected = [], []
    for number, row in enumerate(arrays["probe"]):
        if number % 50 == 7:
            lines.append("[1, 2]")
            expected.append(None)
        elif number % 50 == 9:
            lines.append(json.dumps([0.0] * 8))
            expected.append(None)
        else:
            lines.append(json.dumps({"features": row.tolist(), "name": f"p{number}", "cam": number % 3}))
            expected.append(index.rerank(row, topn=5))
    done = shell("run", "--index", index.path, "-", "--depth", 5, input="\n".join(lines))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["probe"] for answer in answers] == list(range(150))
    assert done.returncode == 1
    assert "6 of 150 lines were not valid probes" in done.stderr
    for number, (answer, one) in enumerate(zip(answers, expected, strict=True)):
        if one is None:
            assert "error" in answer
        else:
            assert answer["name"] == f"p{number}"
            assert answer["indices"] == one.indices[0].tolist()
            assert np.float32(answer["scores"]).tolist() == one.scores[0].tolist()
