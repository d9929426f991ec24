"""The benchmark of language models: its list, its records and the table of the page. No training is judged here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.language_learning import __main__ as work
from tests.benchmarks.language_learning import runs, table
from tests.benchmarks.language_learning.arms import ARMS, TASKS, settings
from tests.benchmarks.language_learning.tasks import Task
from tests.benchmarks.learning import records
from tests.language import setups, tiny

PAGE = Path(__file__).parents[1] / "docs" / "language-models.md"


def low_first(prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
    return [float(response[0] < 12) for response in responses]


@pytest.fixture(autouse=True)
def tiny_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every task is a tiny model with four prompts."""
    environment = {"prompts": setups.PROMPTS, "reward_fn": low_first, "max_new_tokens": 3, "success": 1.0}
    ids = {"vocab_size": tiny.VOCABULARY, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    task = Task(tiny.model, {**environment, **ids}, {"prompts": [[13, 14], [15]]}, 0.5)
    monkeypatch.setattr(runs, "task_of", lambda options: task)


def order(arm: str, seed: int = 0) -> dict[str, Any]:
    short = {**settings("copying", arm), "responses": 128}
    return {"task": "copying", "arm": arm, "seed": seed, "settings": short}


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_record_holds_the_order_and_success_before_and_after(arm: str) -> None:
    record = json.loads(json.dumps(runs.run(order(arm))))
    assert {key: record[key] for key in order(arm)} == order(arm)
    assert record["responses"] == 128 == record["curve"][-1][0] and record["constant"] == 0.5
    for when in ("before", "after"):
        assert len(record[when]["greedy"]) == len(record[when]["sampled"]) == 2
        assert all(value * runs.SAMPLES % 1 == 0 for value in record[when]["sampled"])


def test_arms_differ_in_critic_and_advantage_alone() -> None:
    for task in TASKS:
        shared = [{**settings(task, arm), "policy": 0, "buffer": 0, "value_pretraining": 0} for arm in ARMS]
        for other in shared[1:]:
            arguments = {**other["arguments"]}
            arguments.pop("clip_range_high", None)
            assert {**other, "arguments": arguments} == shared[0]


def test_a_list_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ran = tmp_path / "runs.jsonl", list[Any]()

    def run(order: dict[str, Any], before: Any) -> dict[str, Any]:
        ran.append((order["arm"], order["seed"]))
        if len(ran) == 2:
            raise KeyboardInterrupt
        success = {"greedy": [0.0], "sampled": [0.0]}
        return {**order, "before": success, "after": success, "core_seconds": 1.0}

    monkeypatch.setattr(work, "run", run)
    line = ["list", "--file", str(path), "--tasks", "gcd", "--arms", "PPO", "RLOO", "--seeds", "0", "2"]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(KeyboardInterrupt):
        work.main()
    work.main()
    assert ran == [("PPO", 0), ("RLOO", 0), ("RLOO", 0), ("PPO", 1), ("RLOO", 1)]
    assert len(records.read(path)) == 4


def record_of(seed: int, after: list[float], task: str = "gcd", arm: str = "GRPO") -> dict[str, Any]:
    chosen = {"task": task, "arm": arm, "seed": seed, "settings": settings(task, arm)}
    before = {"greedy": [0.0, 0.0], "sampled": [0.25, 0.0]}
    success = {"before": before, "after": {"greedy": [1.0, 0.0], "sampled": after}}
    return {**chosen, **success, "core_seconds": 10 * seed, "constant": 0.4}


def test_a_row_has_the_mean_the_interval_over_questions_and_the_seeds() -> None:
    # By question (0.5 + 1.0) / 2 = 0.75 and (0.25 + 0.25) / 2 = 0.25: mean 0.5, deviation 0.3536, error 0.25, and
    # 0.5 +- 1.96 * 0.25 = 0.01, 0.99. The seeds' means are 0.375 and 0.625.
    row = table.row([record_of(1, [0.5, 0.25]), record_of(2, [1.0, 0.25])], "gcd", "GRPO")
    assert row == "| gcd | GRPO | 2 | 0.40 | 0.12 | 0.50 [0.01, 0.99] | 0.38 to 0.62 | 0.00 | 0.50 | 15 |"


def test_what_was_not_run_diverged_or_had_other_settings_is_said() -> None:
    assert "not run" in table.row([record_of(1, [0.5, 0.25])], "gcd", "RLOO")
    changed = record_of(1, [0.5, 0.25])
    changed["settings"] = {**changed["settings"], "responses": 1}
    assert "not run" in table.row([changed], "gcd", "GRPO")
    diverged = {**record_of(2, []), "error": "ValueError"}
    del diverged["after"]
    assert "| 1, 1 diverged |" in table.row([record_of(1, [0.5, 0.25]), diverged], "gcd", "GRPO")


def test_every_figure_of_the_page_is_in_the_records() -> None:
    assert table.table(records.read(table.FILE)) in PAGE.read_text(encoding="utf-8")
