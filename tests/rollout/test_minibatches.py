from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_ppo_ext.objective.distributions import Bernoulli
from sb3_ppo_ext.rollout.minibatches import Rollout, indexable
from tests.environments import ACTIONS
from tests.rollout_buffers import N, T, filled


def rollout_of(buffer: RolloutBuffer, *, normalize: bool = False) -> Rollout:
    return Rollout(buffer, buffer.action_space, normalize_advantage=normalize)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", ["vector", "dict"])
def test_same_minibatches_as_the_buffers_own_for_one_seed(action: str, observation: str) -> None:
    torch.manual_seed(0)
    buffer = filled(action, observation)
    rollout = rollout_of(buffer)
    np.random.seed(5)
    ours = list(rollout.minibatches(4))
    np.random.seed(5)
    theirs = list(buffer.get(4))
    assert [len(minibatch.advantage) for minibatch in ours] == [4, 4, 4, 4, 2]
    for mine, sample in zip(ours, theirs, strict=True):
        expected = sample.actions.long().flatten() if action == "discrete" else sample.actions
        torch.testing.assert_close(mine.action, expected, rtol=0, atol=0)
        torch.testing.assert_close(mine.observation, sample.observations, rtol=0, atol=0)
        for column, expected in (
            (mine.action_log_prob, sample.old_log_prob),
            (mine.state_value, sample.old_values),
            (mine.advantage, sample.advantages),
            (mine.value_target, sample.returns),
        ):
            torch.testing.assert_close(column, expected, rtol=0, atol=0)


def test_every_row_comes_once_an_epoch_with_its_own_distribution() -> None:
    rollout = rollout_of(filled())
    rollout.rows = rollout.rows._replace(distribution=Bernoulli(rollout.rows.advantage[:, None]))
    for _ in range(2):
        minibatches = list(rollout.minibatches(5))
        advantage = torch.cat([minibatch.advantage for minibatch in minibatches])
        assert torch.equal(advantage.sort().values, rollout.advantage.sort().values)
        for minibatch in minibatches:
            assert isinstance(minibatch.distribution, Bernoulli)
            assert torch.equal(minibatch.distribution.logits[:, 0], minibatch.advantage)


class Own(RolloutBuffer):
    def get(self, batch_size: int | None = None):  # type: ignore[no-untyped-def]
        yield from super().get(batch_size)


class OwnSamples(RolloutBuffer):
    def _get_samples(self, batch_inds, env=None):  # type: ignore[no-untyped-def]
        return super()._get_samples(batch_inds, env)


def test_buffers_with_a_method_of_their_own_are_recognised() -> None:
    assert indexable(RolloutBuffer) and indexable(DictRolloutBuffer)
    assert not indexable(Own) and not indexable(OwnSamples)


@pytest.mark.parametrize("cls", [RolloutBuffer, Own])
def test_rollout_scope_normalises_over_all_rows(cls: type[RolloutBuffer]) -> None:
    rollout = rollout_of(filled(cls=cls), normalize=True)
    advantage = torch.cat([minibatch.advantage for minibatch in rollout.minibatches(5)])
    torch.testing.assert_close(advantage.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(advantage.std(), torch.tensor(1.0))


def test_refreshing_with_the_same_values_changes_nothing_and_with_others_equals_the_buffers_gae() -> None:
    torch.manual_seed(0)
    buffer = filled()
    last, dones = torch.randn(N), np.array([False, True, False])
    buffer.compute_returns_and_advantage(last, dones)
    rollout = rollout_of(buffer)
    before = rollout.rows
    rollout.refresh_advantage(before.state_value, last, dones)
    assert torch.equal(rollout.rows.advantage, before.advantage)
    assert torch.equal(rollout.rows.value_target, before.value_target)

    collected = buffer.values.copy()
    rollout.refresh_advantage(before.state_value + 1, last + 1, dones)
    np.testing.assert_array_equal(buffer.values, collected)
    assert torch.equal(rollout.rows.state_value, before.state_value)  # what value clipping holds on to
    # With V + c everywhere, the last step of a continuing episode has delta + gamma c - c.
    shifted, plain = rollout.rows.advantage.reshape(N, T), before.advantage.reshape(N, T)
    torch.testing.assert_close(shifted[0, -1] - plain[0, -1], torch.tensor(0.8 - 1.0))
    torch.testing.assert_close(shifted[1, -1] - plain[1, -1], torch.tensor(-1.0))  # done: nothing follows
