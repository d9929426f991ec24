"""The benchmark of language models: its list, its records and the table of the page. No training is judged here."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext.language import PromptVecEnv
from tests.benchmarks.language_learning import __main__ as work
from tests.benchmarks.language_learning import runs, supervised, table
from tests.benchmarks.language_learning.arms import ARMS, TASKS, settings
from tests.benchmarks.language_learning.tasks import Task, right_responses
from tests.benchmarks.learning import records
from tests.language import setups, tiny

PAGE = Path(__file__).parents[1] / "docs" / "language-models.md"


def low_first(prompts: list[list[int]], responses: list[list[int]]) -> list[float]:
    return [float(response[0] < 12) for response in responses]


def tiny_task() -> Task:
    """A tiny model and four prompts."""
    environment = {"prompts": setups.PROMPTS, "reward_fn": low_first, "max_new_tokens": 3, "success": 1.0}
    ids = {"vocab_size": tiny.VOCABULARY, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    answers = [[5, tiny.EOS], [6, 7, tiny.EOS], [8, tiny.EOS], [9, 10, 11]]
    return Task(tiny.model, {**environment, **ids}, answers, {"prompts": [[13, 14], [15]]}, 0.5)


@pytest.fixture(autouse=True)
def every_task_is_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "task_of", lambda options: tiny_task())


def order(arm: str, seed: int = 0) -> dict[str, Any]:
    short = {**settings("copying", arm), "responses": 256}
    return {"task": "copying", "arm": arm, "seed": seed, "settings": short}


@pytest.mark.parametrize("arm", list(ARMS))
def test_a_record_holds_the_order_and_success_before_half_way_and_after(arm: str) -> None:
    record = json.loads(json.dumps(runs.run(order(arm))))
    assert {key: record[key] for key in order(arm)} == order(arm)
    assert record["responses"] == 256 and record["constant"] == 0.5
    assert [point[0] for point in record["curve"][-1:]] == ([] if arm == "supervised" else [256])
    evaluations = record["evaluations"]
    assert [each["responses"] for each in evaluations] == [0, 128, 256]
    spent = [each["core_seconds"] for each in evaluations]
    assert spent == sorted(spent) and spent[0] == 0 and 0 <= record["core_seconds"] - spent[-1] < 0.5
    for each in evaluations:
        assert len(each["greedy"]) == len(each["sampled"]) == 2
        assert all(value * runs.SAMPLES % 1 == 0 for value in each["sampled"])


def test_the_first_evaluation_is_done_once_and_evaluating_is_no_time_of_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, done = [0.0], list[int]()

    def success(model: Any, task: Task) -> runs.Success:
        clock[0] += 100
        done.append(model.num_timesteps)
        return {"greedy": [1.0], "sampled": [1.0]}

    monkeypatch.setattr(runs, "held_out_success", success)
    monkeypatch.setattr(time, "process_time", lambda: clock[0])
    known: runs.Success = {"greedy": [0.0], "sampled": [0.5]}
    record = runs.run(order("GRPO"), known)
    assert done == [128, 256] and record["core_seconds"] == 0
    assert record["evaluations"][0] == {"responses": 0, "core_seconds": 0, **known}


def test_arms_differ_in_critic_and_advantage_alone() -> None:
    aside = {"policy": 0, "buffer": 0, "value_pretraining": 0, "supervised": 0}
    for task in TASKS:
        shared = [{**settings(task, arm), **aside} for arm in ARMS]
        for other in shared[1:]:
            arguments = {**other["arguments"]}
            arguments.pop("clip_range_high", None)
            assert {**other, "arguments": arguments} == shared[0]


def test_supervised_training_raises_the_probability_of_the_right_responses_of_all_prompts() -> None:
    task = tiny_task()
    model = runs.model_of(task, settings("copying", "supervised"), seed=0)
    env, policy = model.get_env(), model.policy
    assert isinstance(env, PromptVecEnv)
    observation, _ = policy.obs_to_tensor(env.task.observe(np.arange(4)))
    responses = torch.as_tensor(supervised.padded(task.answers, env.task))
    assert responses.tolist() == [[5, 1, 0], [6, 7, 1], [8, 1, 0], [9, 10, 11]]

    def log_prob() -> torch.Tensor:
        with torch.no_grad():
            return policy.evaluate_actions(observation, responses)[1]

    before = log_prob()
    supervised.supervise(model, task.answers, 1024, runs.TrainingSuccess())
    assert model.num_timesteps == 1024
    assert (log_prob() > before + 1).all()


def test_every_question_is_drawn_equally_often() -> None:
    drawn = np.concatenate(list(supervised.minibatches(5, 4, 23, seed=0)))
    assert len(drawn) == 23
    assert sorted(np.bincount(drawn)) == [4, 4, 5, 5, 5]


def test_a_right_response_is_a_space_the_answer_and_the_end() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    assert right_responses(tokenizer, 10, ["-7", "12"]) == [[32, 45, 55, 10], [32, 49, 50, 10]]


def test_a_list_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ran = tmp_path / "runs.jsonl", list[Any]()

    def run(order: dict[str, Any], before: Any) -> dict[str, Any]:
        ran.append((order["arm"], order["seed"]))
        if len(ran) == 2:
            raise KeyboardInterrupt
        success = {"greedy": [0.0], "sampled": [0.0]}
        return {**order, "evaluations": [success, success], "core_seconds": 1.0}

    monkeypatch.setattr(work, "run", run)
    line = ["list", "--file", str(path), "--tasks", "gcd", "--arms", "PPO", "RLOO", "--seeds", "0", "2"]
    monkeypatch.setattr("sys.argv", line)
    with pytest.raises(KeyboardInterrupt):
        work.main()
    work.main()
    assert ran == [("PPO", 0), ("RLOO", 0), ("RLOO", 0), ("PPO", 1), ("RLOO", 1)]
    assert len(records.read(path)) == 4


def record_of(seed: int, after: list[float], arm: str = "GRPO", seconds: float = 10.0) -> dict[str, Any]:
    chosen = {"task": "gcd", "arm": arm, "seed": seed, "settings": settings("gcd", arm)}
    before = {"core_seconds": 0.0, "greedy": [0.0, 0.0], "sampled": [0.25, 0.0]}
    success = [before, {"core_seconds": seconds, "greedy": [1.0, 0.0], "sampled": after}]
    return {**chosen, "evaluations": success, "core_seconds": seconds, "constant": 0.4}


def test_a_row_has_the_mean_the_interval_over_questions_and_the_seeds() -> None:
    # By question (0.5 + 1.0) / 2 = 0.75 and (0.25 + 0.25) / 2 = 0.25: mean 0.5, deviation 0.3536, error 0.25, and
    # 0.5 +- 1.96 * 0.25 = 0.01, 0.99. The seeds' means are 0.375 and 0.625. After 5 of 10 and of 20 seconds the one is
    # at (0.125 + 0.375) / 2 = 0.25, and the other at (3 * 0.125 + 0.625) / 4 = 0.25.
    runs = [record_of(1, [0.5, 0.25]), record_of(2, [1.0, 0.25], seconds=20)]
    row = table.row("gcd", "GRPO", runs, 5.0)
    assert row == "| gcd | GRPO | 2 | 0.40 | 0.12 | 0.50 [0.01, 0.99] | 0.38 to 0.62 | 0.25 | 0.00 | 0.50 | 15 |"


def test_the_equal_time_is_that_of_the_quickest_arm() -> None:
    # RLOO takes 10 s in the mean, GRPO 20 s; by then GRPO is half way from 0.125 to 0.625. Right answers do not count.
    quick = [record_of(1, [0.5, 0.5], "supervised", 1.0)]
    quick += [record_of(seed, [0.5, 0.5], "RLOO", seconds) for seed, seconds in ((1, 8), (2, 12))]
    rows = table.rows([*quick, record_of(1, [1.0, 0.25], seconds=20)], "gcd")
    assert [row.split(" | ")[7] for row in rows if "GRPO | 1 " in row] == ["0.38"]


def test_what_was_not_run_diverged_or_had_other_settings_is_said() -> None:
    record = record_of(1, [0.5, 0.25])
    assert sum("not run" in row for row in table.rows([record], "gcd")) == len(ARMS) - 1
    changed = {**record, "settings": {**record["settings"], "responses": 1}}
    assert sum("not run" in row for row in table.rows([changed], "gcd")) == len(ARMS)
    diverged = {**record, "seed": 2, "evaluations": record["evaluations"][:1], "error": "ValueError"}
    assert any("| 1, 1 diverged |" in row for row in table.rows([record, diverged], "gcd"))
    assert all(row.count("|") == table.HEADER.split("\n")[0].count("|") for row in table.rows([record], "gcd"))


def test_every_figure_of_the_page_is_in_the_records() -> None:
    assert table.table(records.read(table.FILE)) in PAGE.read_text(encoding="utf-8")
