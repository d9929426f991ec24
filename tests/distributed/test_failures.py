"""What fails in one process ends all, within seconds, with a text that names it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.worker import launch, results

MODULE = "tests.distributed.failing"
SECONDS = 5.0
# Job -> what the first and the second process raise, and what is in both texts.
RAISED = {
    "arguments": ("ValueError", "ValueError", "n_steps: 16 on rank 0; 8 on rank 1"),
    "policy": ("ValueError", "ValueError", "policy_kwargs: {net_arch: [4]} on rank 0; {net_arch: [8]} on rank 1"),
    "exception": ("ProcessFailedError", "KeyError", "bad key"),
    "interrupt": ("KeyboardInterrupt", "KeyboardInterrupt", ""),
    "NaN": ("DivergedError", "DivergedError", "rewards"),
    "drift": ("ProcessFailedError", "ValueError", "differ by 1 from those of rank 0"),
    "compiled": ("ValueError", "ValueError", "no compiler on this machine"),
    "update": ("ProcessFailedError", "RuntimeError", "out of memory"),
    "afterwards": ("ProcessFailedError", "ProcessFailedError", "the training of all processes has ended (rank 1"),
}


def test_every_exit_is_that_of_both(tmp_path: Path) -> None:
    names = ["arguments", "policy", "False", "exception", "interrupt", "NaN", "drift", "auto", "compiled"]
    names += ["update", "afterwards"]  # which end the processes' connections
    first, second = results(launch(2, tmp_path, *names, module=MODULE), tmp_path)
    wrong: dict[str, Any] = {}
    for name, (of_first, of_second, text) in RAISED.items():
        raised = first[name][0], second[name][0]
        texts = text in first[name][1] and text in second[name][1]
        named = of_first == of_second or first[name][1].startswith("rank 1: ")
        if raised != (of_first, of_second) or not (texts and named) or first[name][2] > SECONDS + second[name][2]:
            wrong[name] = first[name], second[name]
    assert not wrong
    assert first["False"][3] == second["False"][3] == 128  # the rollout in which it stopped
    assert "rank 1: no compiler on this machine" in first["auto"][3]


@pytest.mark.parametrize("job", ["killed", "hangs"])
def test_a_process_without_an_answer_is_named(job: str, tmp_path: Path) -> None:
    first, second = launch(2, tmp_path, job, module=MODULE)
    try:
        status, printed = first.end(timeout=60)
        assert status == 0, printed
    finally:
        second.end(timeout=0)
    kind, text, seconds, _ = pickle.loads((tmp_path / "0").read_bytes())[job]
    assert kind == "ProcessFailedError" and text.startswith("rank 1: no answer"), text
    assert seconds < 60  # the timeout of the group, which "hangs" has shortened
