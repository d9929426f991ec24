"""Evaluation on held-out prompts: what is logged, written and kept; and that training does not notice."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import PromptEnv, PromptEvalCallback
from sb3_ppo_ext.language.envs.prompt_env import PromptTask
from sb3_ppo_ext.language.evaluation.evaluate import undisturbed
from tests.checkpoints import runs
from tests.language import setups, tiny

HELD_OUT = [[4, 3], [6, 5], [12, 11, 10]]


def callback_of(prompts: Any = HELD_OUT, **options: Any) -> PromptEvalCallback:
    return PromptEvalCallback(prompts, **{"n": 4, "every": 1, **options})


def noisy(prompts: list[Any], responses: list[Any]) -> list[float]:
    """Draws from every generator of the process, as a careless reward function does."""
    random.random(), np.random.random(), torch.rand(1)
    return setups.low_ids(prompts, responses)


def trained(*parts: int, callback: PromptEvalCallback | None = None) -> PPOX:
    model = setups.ppox(environment=setups.env_of(noisy, success=2.0))
    for number, steps in enumerate(parts):
        model.learn(steps, callback=callback, reset_num_timesteps=number == 0)
    return model


def test_training_in_two_parts_with_evaluation_is_training_in_one_without() -> None:
    """The responses of the last rollout show that the generators and the order of prompts are the same at the end."""
    plain = trained(64)
    watched = trained(32, 32, callback=callback_of(temperature=2.0, batch_size=5))
    for name, parameter in plain.policy.state_dict().items():
        assert torch.equal(parameter, watched.policy.state_dict()[name]), name
    last: list[Any] = [model.rollout_buffer for model in (plain, watched)]
    assert np.array_equal(last[0].actions, last[1].actions) and watched.num_timesteps == 64


def test_an_evaluation_that_fails_leaves_everything_as_it_was() -> None:
    policy = setups.policy()
    before = torch.get_rng_state(), policy.lm.temperature
    with pytest.raises(KeyError), undisturbed(policy, 3, 0.5):
        torch.rand(3)
        assert policy.lm.temperature == 0.5
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before[0]) and policy.lm.temperature == before[1]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_evaluation_has_a_table_and_the_log_what_it_says(tmp_path: Path) -> None:
    callback = callback_of(folder=tmp_path, every=2)
    model = setups.ppox(environment=setups.env(success=2.0))
    model.set_logger(configure(str(tmp_path / "log"), ["tensorboard", "json"]))
    model.learn(48, callback=callback)
    model.logger.close()
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {"step_0.jsonl", "step_32.jsonl", "step_48.jsonl"}
    rows = rows_of(tmp_path / "step_48.jsonl")
    assert [row["sample"] for row in rows] == ["greedy", 0, 1, 2, 3] * 3
    greedy = [row for row in rows if row["sample"] == "greedy"]
    assert [row["prompt"] for row in greedy] == HELD_OUT
    sampled = np.array([row["score"] for row in rows if row["sample"] != "greedy"]).reshape(3, 4)
    found = callback.results
    assert found["score"] == pytest.approx(np.mean([row["score"] for row in greedy]))
    assert found["success_rate"] == np.mean([row["score"] >= 2 for row in greedy])
    assert found["sampled_score"] == pytest.approx(sampled.mean())
    assert found["best@4"] == pytest.approx(sampled.max(axis=1).mean())
    assert found["pass@4"] == (sampled >= 2).any(axis=1).mean() and found["pass@1"] == (sampled >= 2).mean()
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [point.step for point in events.Scalars("eval/pass@4")] == [0, 32, 48]
    assert [point.step for point in events.Scalars("rollout/ep_rew_mean")] == [16, 32, 48]
    assert len(events.Tensors("eval/responses/text_summary")) == 3


def test_the_gain_is_the_difference_to_the_first_evaluation_prompt_by_prompt(tmp_path: Path) -> None:
    callback = callback_of(folder=tmp_path, n=0)
    setups.ppox(environment=setups.env(), learning_rate=0.05).learn(32, callback=callback)
    scores = [[row["score"] for row in rows_of(tmp_path / f"step_{step}.jsonl")] for step in (0, 32)]
    gain = np.array(scores[1]) - scores[0]
    assert callback.results["score_gain"] == pytest.approx(gain.mean())
    assert callback.results["score_gain_stderr"] == pytest.approx(gain.std(ddof=1) / 3**0.5)
    assert "success_rate" not in callback.results and "sampled_score" not in callback.results


def test_the_best_model_is_the_one_of_the_best_evaluation(tmp_path: Path) -> None:
    callback = callback_of(folder=tmp_path, metric="sampled_score", n=16)
    model = setups.ppox(environment=setups.env(), learning_rate=0.02)
    results = []

    class Recorded(PromptEvalCallback):
        def evaluate_now(self) -> dict[str, float]:
            results.append(super().evaluate_now()["sampled_score"])
            return self.results

    callback.__class__ = Recorded
    model.learn(64, callback=callback)
    assert callback.best == max(results) and callback.best_step == 16 * int(np.argmax(results))
    best = PPOX.load(tmp_path / "best_model", env=setups.env(), device="cpu")
    again = callback_of(metric="sampled_score", n=16)
    again.init_callback(best)
    assert again.evaluate_now()["sampled_score"] == pytest.approx(max(results))


def test_a_resumed_callback_goes_on_from_the_first_evaluation_and_the_best() -> None:
    callback, again = callback_of(), callback_of()
    setups.ppox().learn(16, callback=callback)
    again.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    assert again.first == callback.first and again.best == callback.best and again.evaluated_at == 16


def test_a_run_stopped_and_resumed_has_the_evaluations_of_an_unbroken_one(tmp_path: Path) -> None:
    def make() -> PPOX:
        return setups.ppox(environment=setups.env(success=2.0))

    found = {}
    for name, stops in {"unbroken": [], "broken": [17, 40, 70]}.items():
        folder = tmp_path / name

        def callbacks(folder: Path = folder) -> list[BaseCallback]:
            return [callback_of(folder=folder, every=2)]

        _, run = runs.trained(make, lambda: setups.env(success=2.0), folder, total=96, stops=stops, callbacks=callbacks)
        tables = {path.name: path.read_text() for path in folder.glob("*.jsonl")}
        found[name] = tables, run.callbacks[0].state_dict(), run.callbacks[0].results  # type: ignore[attr-defined]  # ours
    assert found["broken"] == found["unbroken"]
    assert set(found["broken"][0]) == {f"step_{step}.jsonl" for step in (0, 32, 64, 96)}


def answers(prompts: list[Any], responses: list[Any], kind: list[str]) -> list[float]:
    return [float(name == "a") for name in kind]


def test_the_metric_is_reported_by_the_values_of_a_column() -> None:
    env = setups.env_of(answers, columns={"kind": ["a", "b", "a", "b"]}, success=1.0)
    callback = callback_of(columns={"kind": ["a", "b", "b"]}, by="kind")
    setups.ppox(environment=env).learn(16, callback=callback)
    found = callback.results
    assert found["success_rate/a"] == 1 and found["success_rate/b"] == 0
    assert found["success_rate"] == pytest.approx(1 / 3)


def test_single_environments_and_other_rewards_are_evaluated_too() -> None:
    single = PromptEnv(setups.PROMPTS, setups.low_ids, max_new_tokens=4, vocab_size=tiny.VOCABULARY, eos_token_id=1)
    model = setups.ppox(environment=single, n_steps=4)  # type: ignore[arg-type]  # any env
    callback = callback_of(reward_fn=lambda prompts, responses: [3.0] * len(responses), success=3)
    model.learn(4, callback=callback)
    assert callback.results["success_rate"] == 1 and callback.results["maj@4"] == 1


BAD: dict[str, tuple[Any, dict[str, Any]]] = {
    r"k=\[1, 8\]: 8 of n=4 samples": (HELD_OUT, {"k": [1, 8]}),
    "temperature=0: above 0": (HELD_OUT, {"temperature": 0}),
    "metric='success_rate': one of 'score', .*without success= of the environment": (
        HELD_OUT,
        {"metric": "success_rate"},
    ),
    "longer than max_prompt_length=4": ([[3] * 5], {}),
    "by='kind': no such column": (HELD_OUT, {"by": "kind"}),
    "every=0": (HELD_OUT, {"every": 0}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused(message: str) -> None:
    prompts, options = BAD[message]
    with pytest.raises(ValueError, match=message):
        setups.ppox().learn(16, callback=callback_of(prompts, **options))


def test_prompts_of_training_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="1 of the 2 prompts of the evaluation are prompts of training too"):
        setups.ppox().learn(16, callback=callback_of([[3, 4], [4, 3]]))


def test_the_answer_of_a_response_is_the_users_choice() -> None:
    callback = callback_of(answer_of=lambda response: len(response))
    setups.ppox(environment=setups.env(success=2.0)).learn(16, callback=callback)
    assert 1 <= callback.results["distinct_answers"] <= 4
    assert isinstance(callback.task, PromptTask)
