"""Groups without a difference in score are drawn again: with a limit, counted, and what is left over is carried on."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext import PPOX, Checkpoints, TrainingWarning
from sb3_ppo_ext.language import (
    LanguageModelPolicy,
    PromptVecEnv,
    SampleTable,
    SequenceRolloutBuffer,
    TextGameEnv,
    conversation_vec_env,
)
from sb3_ppo_ext.language.monitoring import records
from sb3_ppo_ext.language.training.refill import no_draws, refill_records, rescore_carried
from tests.checkpoints.runs import Steps, assert_same, trained
from tests.language import chats, setups
from tests.language.games import HigherLower

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")
N, GROUP = 8, 4


def on_even_draws(prompts: Any, responses: Any) -> list[float]:
    """Scores that differ within the groups of two prompts of four."""
    return [float(len(prompt) < 3 and sum(response) % 2) for prompt, response in zip(prompts, responses, strict=True)]


def environment(reward_fn: Any = on_even_draws, **options: Any) -> PromptVecEnv:
    return setups.env_of(reward_fn, N, group_size=GROUP, **options)


def model_of(env: PromptVecEnv | None = None, **settings: Any) -> PPOX:
    buffer = {"group_advantage": "rloo", "dynamic_sampling": "refill", **settings}
    return setups.ppox(
        environment=env or environment(), policy_kwargs={"value": "none"}, rollout_buffer_kwargs=buffer,
        n_steps=3, batch_size=8, compile=False,
    )  # fmt: skip


def buffer_of(model: PPOX) -> SequenceRolloutBuffer:
    assert isinstance(model.rollout_buffer, SequenceRolloutBuffer)
    return model.rollout_buffer


def scripted(rows: list[list[float]], limit: int = 4, steps: int = 2) -> tuple[SequenceRolloutBuffer, list[int]]:
    """A buffer of two groups of two that is given rows of scores; how many of its rows were complete after each."""
    env = setups.env_of(setups.low_ids, 4, group_size=2)
    settings = {"group_advantage": "rloo", "dynamic_sampling": "refill", "refill_limit": limit}
    buffer = SequenceRolloutBuffer(steps, env.observation_space, env.action_space, "cpu", n_envs=4, **settings)  # type: ignore[arg-type]
    return buffer, [added(buffer, row, number) for number, row in enumerate(rows)]


def added(
    buffer: SequenceRolloutBuffer, scores: Sequence[float], number: int, sampler: list[float] | None = None
) -> int:
    """Adds a row of responses whose log-probabilities are -number; ``sampler`` has those of a sampler."""
    length = setups.LENGTH
    if sampler is not None:
        buffer.add_sampler_log_probs(torch.tensor(sampler)[:, None].expand(4, length))
    observation = {"input_ids": np.full((4, 4), number), "attention_mask": np.ones((4, 4))}
    buffer.group_ids[buffer.pos] = [2 * number, 2 * number, 2 * number + 1, 2 * number + 1]
    zeros = torch.zeros(4, length)
    buffer.add(observation, np.full((4, length), 5), np.array(scores), np.ones(4), zeros, zeros - number)
    return buffer.pos


def test_rows_hold_the_informative_groups_in_the_order_of_their_draw() -> None:
    buffer, positions = scripted([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 0], [1, 0, 0, 0]])
    # Informative: the second group of step 0, both of 2, the first of 3.
    assert positions == [0, 0, 1, 2]
    assert buffer.group_ids.tolist() == [[1, 1, 4, 4], [5, 5, 6, 6]] and buffer.full
    assert buffer.rewards.tolist() == [[0, 1, 0, 1], [1, 0, 1, 0]]
    assert buffer.observations["input_ids"][0, :, 0].tolist() == [0, 0, 2, 2]  # all of a response comes along
    assert buffer.places.tolist() == [[2, 3, 8, 9], [10, 11, 12, 13]]
    assert buffer.draws is not None and buffer.draws["tokens"] == 4 * 4 * setups.LENGTH  # those of every draw


def test_what_a_rollout_has_no_room_for_begins_the_next_one() -> None:
    buffer, positions = scripted([[0, 1, 1, 1], [0, 1, 0, 1], [0, 1, 2, 0]])
    assert positions == [0, 1, 2] and buffer.draws is not None
    assert [group["group_ids"].tolist() for group in buffer.draws["waiting"]] == [[5, 5]]
    buffer.reset()
    assert added(buffer, [7, 7, 0, 1], 3) == 1
    assert buffer.group_ids[0].tolist() == [5, 5, 7, 7]
    assert buffer.places[0].tolist() == [-1, -1, 2, 3] and buffer.draws is not None and buffer.draws["carried"] == 1


def test_the_samplers_log_probabilities_come_along_and_stay_when_the_policys_are_computed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer, _ = scripted([])
    for number in range(3):  # informative: group 1, both of step 1, both of step 2, of which the last has no room
        added(
            buffer,
            [[0, 0, 0, 1], [0, 1, 0, 1], [0, 1, 2, 0]][number],
            number,
            [10.0 * number + row for row in range(4)],
        )
    assert buffer.sampler_log_probs is not None
    assert buffer.group_ids.tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    assert buffer.sampler_log_probs[..., 0].tolist() == [[2, 3, 10, 11], [12, 13, 20, 21]]
    buffer.reset()
    assert added(buffer, [0, 0, 0, 1], 3) == 1  # drawn without a sampler, beside a group that a sampler drew
    assert buffer.group_ids[0].tolist() == [5, 5, 7, 7]
    monkeypatch.setattr(
        "sb3_ppo_ext.language.training.refill.scored_again",
        lambda policy, tokens, limit: (torch.full((2, setups.LENGTH), -0.5), None),
    )
    stub: Any = SimpleNamespace(tokens=lambda *arrays: None)
    rescore_carried(buffer, stub, None)
    assert buffer.log_probs[0, :, 0].tolist() == [-0.5, -0.5, -3.0, -3.0]  # the policy's of now, and of the draw
    sampler = buffer.sampler_log_probs[0, :, 0]
    assert sampler[:2].tolist() == [22.0, 23.0] and np.isnan(sampler[2:]).all()


def test_the_log_is_over_all_groups_that_were_drawn() -> None:
    one, other = np.array([0.0, 1.0]), np.array([3.0, 3.0])
    draws = {
        **no_draws([]), "scores": [one, other, other, 0 * other], "differ": [True, False, False, False], "carried": 1,
        "right": [np.array([0, 1]), np.array([1, 1]), np.array([1, 1]), np.array([0, 0])], "missing": 2,
    }  # fmt: skip
    found = refill_records(draws)
    assert (found["groups/all_right"], found["groups/all_wrong"]) == (0.5, 0.25)
    assert (found["groups/informative_fraction"], found["groups/generated_per_kept"]) == (0.25, 4.0)
    assert (found["groups/carried"], found["groups/missing"]) == (1.0, 2.0)
    # The unbiased deviations are sqrt(1/2), 0, 0 and 0; the scores 0, 1, 3, 3, 3, 3, 0, 0 have the mean 13/8.
    assert found["groups/reward_std"] == pytest.approx(0.5**0.5 / 4) and found["lm/score"] == 13 / 8


def test_beyond_the_limit_the_last_groups_fill_the_rollout_and_are_left_out_of_the_loss() -> None:
    buffer, positions = scripted([[1, 1, 0, 1], [2, 2, 3, 3]], limit=1)
    assert positions == [0, 2] and buffer.full and buffer.draws is not None and buffer.draws["missing"] == 3
    assert buffer.group_ids.tolist() == [[1, 1, 3, 3], [2, 2, 0, 0]]
    buffer.ended[:] = True
    chosen = buffer.in_policy_loss()
    assert chosen is not None and chosen.tolist() == [[True, True, False, False], [False] * 4]


def test_a_training_counts_all_responses_and_learns_from_informative_groups_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens: list[int] = []

    def speeds(sampled: int, seconds: Any) -> dict[str, float]:
        tokens.append(sampled)
        return {}

    monkeypatch.setattr(records, "speeds", speeds)
    model = model_of()
    model.learn(1)
    buffer, logged = buffer_of(model), model.logger.name_to_value
    assert buffer.draws is not None and buffer.draws["steps"] > 3
    assert model.num_timesteps == buffer.draws["steps"] * N
    assert tokens == [buffer.draws["tokens"]] and tokens[0] > buffer.masks.sum()
    spread = buffer.rewards.reshape(3, 2, GROUP)
    assert (spread.max(-1) > spread.min(-1)).all()
    drawn = np.concatenate(buffer.draws["scores"])
    assert len(drawn) == model.num_timesteps and logged["lm/score"] == pytest.approx(drawn.mean())
    assert logged["groups/informative_fraction"] < 1 < logged["groups/generated_per_kept"]
    assert logged["groups/carried"] == 0 and logged["groups/missing"] == 0


def test_carried_groups_keep_a_ratio_of_1_and_are_weighed_by_the_policy_that_drew_them() -> None:
    model = model_of()
    model.learning_rate = 1e-2  # so that the policy moves
    carried: list[np.ndarray] = []
    while not carried:
        model.learn(1, reset_num_timesteps=False)
        buffer = buffer_of(model)
        if (buffer.places < 0).any():
            carried.append(buffer.places < 0)
    sampler, weights = buffer.sampler_log_probs, buffer.importance_weights()
    assert sampler is not None and weights is not None
    rows, mask = carried[0], buffer.masks[carried[0]]
    assert np.isfinite(sampler[rows][mask]).all() and np.isnan(sampler[~rows]).all()
    moved = buffer.log_probs[rows][mask] - sampler[rows][mask]
    assert np.abs(moved).max() > 1e-4  # by the update in between
    np.testing.assert_allclose(weights[rows][mask], np.minimum(np.exp(moved), 2.0), rtol=1e-5)
    assert (weights[~rows] == 1).all()


def test_the_limit_is_warned_of_and_the_rollout_goes_on() -> None:
    model = model_of(environment(lambda prompts, responses: [0.5] * len(responses)), refill_limit=2)
    with pytest.warns(TrainingWarning, match="refill_limit was reached and 6 groups"):
        model.learn(1)
    assert model.num_timesteps == 2 * 3 * N and model.logger.name_to_value["groups/missing"] == 6


def test_a_table_of_samples_shows_the_responses_that_are_kept() -> None:
    model, table = model_of(), SampleTable(every=1, random_rows=3)
    model.learn(60, callback=table)
    assert model.last_update is not None
    summary: Any = model.last_update.summary
    drawn = [pair for step in table.texts for pair in step]
    for name, score, _, prompt, response in table.rows():
        expected = on_even_draws([eval(prompt)], [eval(response)])
        assert float(score) == expected[0], name
    assert len(drawn) > len(summary.score) and (summary.place >= 0).any()


def test_saved_models_and_stopped_runs_carry_their_groups_on(tmp_path: Path) -> None:
    unbroken, _ = trained(model_of, environment, tmp_path / "a", total=200, stops=[], callbacks=lambda: [Steps()])
    broken, _ = trained(
        model_of, environment, tmp_path / "b", total=200, stops=[100, 140, 180], callbacks=lambda: [Steps()]
    )
    assert_same(broken, unbroken)
    model = model_of()
    while not (draws := buffer_of(model).draws) or not draws["waiting"]:
        model.learn(1, reset_num_timesteps=False)
    waiting = copy.deepcopy(draws["waiting"])
    model.save(tmp_path / "model")
    found = buffer_of(PPOX.load(tmp_path / "model", environment())).draws
    assert found is not None
    for group, saved in zip(found["waiting"], waiting, strict=True):
        assert all(np.array_equal(group[name], saved[name]) for name in saved)


def test_a_rollout_that_was_stopped_between_its_draws_goes_on(tmp_path: Path) -> None:
    class Signalled(BaseCallback):
        def _on_step(self) -> bool:
            draws = buffer_of(self.model).draws  # type: ignore[arg-type]  # of PPOX
            nothing_kept = draws is not None and draws["steps"] > 0 == self.model.rollout_buffer.pos  # type: ignore[attr-defined]
            if nothing_kept and not list(tmp_path.glob("checkpoints/*")):
                os.kill(os.getpid(), signal.SIGTERM)
            return True

    unbroken = model_of().learn(120, Steps())
    with pytest.raises(SystemExit, match="143"):
        model_of().learn(120, [Steps(), Signalled()], checkpoint=Checkpoints(tmp_path, grace=0))
    resumed = PPOX.resume(tmp_path, environment(), [Steps(), Signalled()], device="cpu").learn()
    assert_same(resumed, unbroken)
    assert resumed.num_timesteps == unbroken.num_timesteps


REFUSED: dict[str, dict[str, Any]] = {
    "a critic learns from groups without a difference too": {"group_advantage": "leave_one_out"},
    "refill_limit=0": {"refill_limit": 0},
    "'fill'": {"dynamic_sampling": "fill"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_cannot_be_are_refused(message: str) -> None:
    kwargs = {"group_advantage": "rloo", "dynamic_sampling": "refill", **REFUSED[message]}
    value = "shared" if kwargs["group_advantage"] == "leave_one_out" else "none"
    with pytest.raises(ValueError, match=message):
        setups.ppox(environment=environment(), policy_kwargs={"value": value}, rollout_buffer_kwargs=kwargs)


def test_episodes_of_several_turns_are_refused() -> None:
    make = partial(TextGameEnv, HigherLower, chats.tokenizer(), max_new_tokens=2, max_prompt_length=160)
    with pytest.raises(ValueError, match="an episode is one response; pass PromptVecEnv"):
        PPOX(
            LanguageModelPolicy, conversation_vec_env(make, 4, group_size=2), n_steps=4, batch_size=8, device="cpu",
            policy_kwargs={"model": chats.model, "value": "none"},
            rollout_buffer_kwargs={"group_advantage": "rloo", "dynamic_sampling": "refill"},
        )  # fmt: skip
