"""What groups do besides a critic's place: its correction, responses left out of the loss, rules on length, the log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX, TrainingWarning
from sb3_ppo_ext.language import ResponseSpace, SequenceRolloutBuffer, prompt_space
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS
from sb3_ppo_ext.language.monitoring.records import group_records
from sb3_ppo_ext.language.training.credit import overlong_penalties
from sb3_ppo_ext.language.training.groups import critic_corrections
from sb3_ppo_ext.language.training.micro_batches import rescaled
from tests.language import setups

EOS = 1
RESPONSES = [[4, EOS, 0], [4, 5, 6], [EOS, 0, 0], [4, 5, EOS]]  # the second is cut off


def buffer_of(scores: list[float], ids: list[int], **options: Any) -> SequenceRolloutBuffer:
    """One step of four environments with values 1, 0.5 and 0.25 at the three tokens; gamma = lambda = 1."""
    buffer = SequenceRolloutBuffer(
        1, prompt_space(24, 2), ResponseSpace(24, 3, EOS, 0), "cpu", gae_lambda=1, gamma=1, n_envs=4, **options
    )
    buffer.group_ids[0] = ids
    observation = {INPUT_IDS: np.full((4, 2), 7), ATTENTION_MASK: np.ones((4, 2), np.int8)}
    value = torch.tensor([1.0, 0.5, 0.25]).expand(4, 3)
    buffer.add(observation, np.array(RESPONSES), np.array(scores), np.ones(4), value, torch.zeros(4, 3))
    buffer.compute_returns_and_advantage(torch.zeros(4), np.ones(4))
    return buffer


def list_of(rows: np.ndarray | None) -> list[list[bool]]:
    assert rows is not None
    listed: list[list[bool]] = rows.tolist()
    return listed


def test_the_critic_is_corrected_by_its_error_at_the_other_responses() -> None:
    buffer = buffer_of([3.0, 5.0, 1.0, 2.0], [0, 0, 1, 1], group_advantage="leave_one_out")
    # lambda = 1: A = R - V(t). Errors at the prompt are 2, 4, 0, 1; each response loses that of the other one.
    expected: list[list[float]] = [
        [3 - 1 - 4, 3 - 0.5 - 4, 0],
        [5 - 1 - 2, 5 - 0.5 - 2, 5 - 0.25 - 2],
        [1 - 1 - 1, 0, 0],
    ]
    np.testing.assert_allclose(buffer.advantages[0, :3], expected, rtol=1e-6)
    np.testing.assert_allclose(buffer.advantages[0, 3], [2 - 1, 2 - 0.5, 2 - 0.25], rtol=1e-6)
    assert buffer.returns[0, 0].tolist() == [3.0, 3.0, 0.0]  # the critic's targets stay


def test_the_correction_of_an_episode_is_that_of_its_first_step() -> None:
    starts, ended = np.array([[1, 1], [0, 0]]), np.array([[False, False], [True, True]])
    residual, ids = np.array([[2.0, 6.0], [100.0, 200.0]]), np.zeros((2, 2), np.int64)
    assert critic_corrections(residual, ids, starts, ended).tolist() == [[6.0, 2.0], [6.0, 2.0]]


def test_the_overlong_penalty_rises_over_the_last_tokens_alone() -> None:
    length = np.array([1, 16, 17, 18, 20])
    found = overlong_penalties(length, longest=20, buffer=4, factor=2.0)
    assert found.tolist() == [0.0, 0.0, 0.5, 1.0, 2.0]


def test_penalties_leave_the_scores_and_their_groups_as_they_are() -> None:
    options = {"overlong_penalty": 1.0, "overlong_buffer": 2, "dynamic_sampling": "mask"}
    buffer = buffer_of([3.0, 3.0, 1.0, 2.0], [0, 0, 1, 1], **options)
    assert buffer.length_penalties().tolist() == [[0.5, 1.0, 0.0, 1.0]]
    assert buffer.rewards.tolist() == [[3.0, 3.0, 1.0, 2.0]]
    assert buffer.returns[0, :, 0].tolist() == [2.5, 2.0, 1.0, 1.0]
    # With their penalties the first two would differ.
    assert buffer.informative().tolist() == [[False, False, True, True]] == list_of(buffer.in_policy_loss())


def test_the_filter_leaves_out_what_was_cut_off() -> None:
    buffer = buffer_of([3.0, 3.0, 1.0, 2.0], [0, 0, 1, 1], overlong_filter=True)
    assert list_of(buffer.in_policy_loss()) == [[True, False, True, True]]
    both = buffer_of([3.0, 3.0, 1.0, 2.0], [0, 0, 1, 1], overlong_filter=True, dynamic_sampling="mask")
    assert list_of(both.in_policy_loss()) == [[False, False, True, True]]
    assert buffer_of([3.0, 3.0, 1.0, 2.0], [0, 0, 1, 1]).in_policy_loss() is None


MEANS = {
    "token": lambda tokens, mask: tokens.sum() / mask.sum(),
    "response": lambda tokens, mask: (tokens.sum(-1) / mask.sum(-1)).mean(),
    "length": lambda tokens, mask: tokens.sum() / mask.numel(),
}


@pytest.mark.parametrize(("loss_mean", "expected"), [
    ("token", (4 + 3 * 6) / 4), ("response", (4 + 6) / 2), ("length", (4 + 3 * 6) / 6),
])  # fmt: skip
def test_means_are_over_the_rows_that_are_left(loss_mean: str, expected: float) -> None:
    mask = torch.tensor([[True, False, False], [True, True, False], [True, True, True]])
    tokens = torch.tensor([[4.0], [1.0], [6.0]]).expand(3, 3) * mask
    factor = rescaled(torch.tensor([True, False, True]), mask, loss_mean)
    assert MEANS[loss_mean](tokens * factor[:, None], mask).item() == pytest.approx(expected)
    assert not rescaled(torch.zeros(3, dtype=torch.bool), mask, loss_mean).any()


def test_the_log_says_how_often_responses_differ() -> None:
    records = group_records(buffer_of([1.0, 1.0, 0.0, 2.0], [0, 0, 1, 1], dynamic_sampling="mask"))
    assert records == pytest.approx({
        "groups/informative_fraction": 0.5, "groups/all_right": 0.5, "groups/all_wrong": 0.0,
        "groups/reward_std": 2**0.5 / 2, "groups/generated_per_kept": 2.0,
    })  # fmt: skip
    assert group_records(buffer_of([1.0, 1.0, 0.0, 2.0], [0, 1, 2, 3])) == {}
    assert group_records(buffer_of([1.0, 1.0, 0.0, 2.0], [-1] * 4)) == {}


def test_two_rules_on_length_are_warned_of() -> None:
    with pytest.warns(TrainingWarning, match="overlong_penalty and overlong_filter are rules for the same"):
        buffer_of([0.0] * 4, [0] * 4, overlong_penalty=1.0, overlong_filter=True)


REFUSED: dict[str, dict[str, Any]] = {
    "overlong_buffer=2: only with overlong_penalty": {"overlong_buffer": 2},
    "overlong_buffer=9: the longest response has 6 tokens": {"overlong_buffer": 9, "overlong_penalty": 1.0},
    "overlong_penalty=-1": {"overlong_penalty": -1},
    "dynamic_sampling='refil'": {"dynamic_sampling": "refil"},
    "dynamic_sampling='mask': the environment has no groups": {"dynamic_sampling": "mask"},
    "group_advantage='leave_one_out': the environment has no groups": {"group_advantage": "leave_one_out"},
    "success_score=nan": {"success_score": float("nan")},
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        setups.ppox(rollout_buffer_kwargs=REFUSED[message])


def trained(reward_fn: Any, **settings: Any) -> PPOX:
    environment = setups.env_of(reward_fn, 8, group_size=4)
    options: dict[str, Any] = {"environment": environment, "policy_kwargs": {"value": "separate"}, "ent_coef": 0.0}
    return setups.ppox(**options, rollout_buffer_kwargs={"dynamic_sampling": "mask", **settings}).learn(16)


def test_groups_without_a_difference_train_the_critic_alone() -> None:
    """All scores are 1, so that no response is left in the policy's loss; the values are to be 1."""
    torch.manual_seed(0)
    model = trained(lambda prompts, responses: [1.0] * len(responses))
    fresh = setups.ppox(environment=setups.env(8, group_size=4), policy_kwargs={"value": "separate"})
    before, after = fresh.policy.state_dict(), model.policy.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"critic"}
    assert model.num_timesteps == 16  # every response counts
    assert model.logger.name_to_value["groups/informative_fraction"] == 0.0
