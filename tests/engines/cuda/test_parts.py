"""Advantages in parallel, laws on tensors, buffers of tensors, recordings of an epoch: each against its counterpart."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_ppo_ext import AdaptiveClipFraction, AdaptiveKL, Proportional, Threshold
from sb3_ppo_ext.engines.cuda.controllers import DeviceControllers
from sb3_ppo_ext.engines.cuda.epochs import MINIBATCHES, recording_sizes
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.knobs.knob_set import KnobSet
from sb3_ppo_ext.rollout.device_buffers import PENDING, DeviceDictRolloutBuffer, DeviceRolloutBuffer, discounted_sums
from sb3_ppo_ext.rollout.device_minibatches import DeviceRollout
from sb3_ppo_ext.rollout.minibatches import Rollout
from tests.environments import ACTIONS, OBSERVATIONS


def test_discounted_sums_by_hand() -> None:
    # From the end: 3; 2 + 0.5 * 3 = 3.5; 1 + 0 * 3.5 = 1 (an episode ended there); 4 + 2 * 1 = 6.
    delta, discount = torch.tensor([4.0, 1.0, 2.0, 3.0]), torch.tensor([2.0, 0.0, 0.5, 7.0])
    assert discounted_sums(delta, discount).tolist() == [6.0, 1.0, 3.5, 3.0]


@pytest.mark.parametrize("steps", [1, 2, 3, 17, 64, 100])
def test_discounted_sums_of_any_length(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    delta = torch.randn(steps, 3, dtype=torch.float64, generator=generator)
    discount = torch.rand(steps, 3, dtype=torch.float64, generator=generator)
    expected, running = torch.empty_like(delta), torch.zeros(3, dtype=torch.float64)
    for step in reversed(range(steps)):
        running = delta[step] + discount[step] * running
        expected[step] = running
    torch.testing.assert_close(discounted_sums(delta, discount), expected, rtol=1e-12, atol=1e-12)


def filled(buffer: Any, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> Any:
    """Any numbers, the same each time; on tensors as a policy returns them."""
    random = np.random.RandomState(0)
    observation_space.seed(0)
    action_space.seed(0)
    for _ in range(buffer.buffer_size):
        samples = [observation_space.sample() for _ in range(buffer.n_envs)]
        is_dict = isinstance(observation_space, spaces.Dict)
        obs = (
            {key: np.stack([sample[key] for sample in samples]) for key in samples[0]} if is_dict else np.stack(samples)
        )
        action = np.stack([np.asarray(action_space.sample()) for _ in range(buffer.n_envs)])
        value, log_prob = (torch.from_numpy(random.normal(size=buffer.n_envs).astype(np.float32)) for _ in range(2))
        reward, start = random.normal(size=buffer.n_envs), random.rand(buffer.n_envs) < 0.2
        buffer.add(obs, action.reshape(buffer.n_envs, -1), reward, start, value.reshape(-1, 1), log_prob)
    buffer.compute_returns_and_advantage(torch.tensor([[0.5], [-0.5], [2.0]]), np.array([True, False, False]))
    return buffer


@pytest.mark.parametrize(("observation", "action"), [*itertools.product(OBSERVATIONS, ACTIONS)])
def test_a_buffer_of_tensors_holds_and_renews_what_that_of_arrays_does(observation: str, action: str) -> None:
    where, what = OBSERVATIONS[observation], ACTIONS[action]
    is_dict = isinstance(where, spaces.Dict)
    kinds: list[Any] = [DictRolloutBuffer, DeviceDictRolloutBuffer] if is_dict else [RolloutBuffer, DeviceRolloutBuffer]
    arguments: dict[str, Any] = {"device": "cpu", "gae_lambda": 0.9, "gamma": 0.95, "n_envs": 3}
    host, device = (filled(kind(11, where, what, **arguments), where, what) for kind in kinds)
    rollouts = [
        Rollout(host, what, normalize_advantage=True),
        DeviceRollout(device, what, normalize_advantage=True),
    ]
    host, other = (rollout.rows for rollout in rollouts)
    torch.testing.assert_close(host._asdict(), other._asdict(), rtol=1e-5, atol=1e-5)
    assert rollouts[1].explained_variance() == pytest.approx(rollouts[0].explained_variance(), rel=1e-4)
    rows = torch.cat([sample.returns for sample in device.get(4)])
    torch.testing.assert_close(rows.sort().values, host.value_target.sort().values, rtol=1e-5, atol=1e-5)
    values = torch.linspace(-1, 1, 33)  # of a value function that has learned since
    before = rollouts[0].explained_variance()
    for rollout in rollouts:
        rollout.refresh_advantage(values, torch.zeros(3, 1), np.zeros(3))
    assert rollouts[1].explained_variance() == pytest.approx(rollouts[0].explained_variance(), rel=1e-4)
    assert rollouts[0].explained_variance() != pytest.approx(before, rel=1e-3)  # it is that of the renewed targets


def test_a_buffer_shows_every_step_it_was_given() -> None:
    space, steps = OBSERVATIONS["vector"], PENDING + 7
    buffer = DeviceRolloutBuffer(steps, space, ACTIONS["discrete"], "cpu", n_envs=2)
    space.seed(0)
    observation, expected = np.zeros((2, *space.shape), np.float64), []  # type: ignore[misc]  # has a shape
    for step in range(steps):
        observation[:] = step  # an environment may write into its own array again
        buffer.add(observation, np.array([step, -step]), np.ones(2), np.zeros(2), torch.ones(2, 1), torch.zeros(2))
        expected.append([step, -step])
        if step in (2, PENDING - 1, PENDING + 1):  # as a callback may read it
            assert buffer.actions[: step + 1, :, 0].tolist() == expected
            assert not buffer.values[step + 1 :].any() and buffer.values[: step + 1].all()
    assert buffer.full and buffer.observations.dtype == torch.float32
    assert buffer.observations[:, 1, 0].tolist() == list(range(steps))


LAWS = [Threshold(1.5, 2.0), Threshold(2.0, 1.5), Proportional(10_000), Proportional(100, limit=0.5)]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("excess", [0.0, 0.3, 0.5, 0.6, 2 / 3, 1.0, 1.4, 1.5, 1.9, 2.0, 3.0, 1e6])
def test_a_law_is_the_same_for_tensors_as_for_floats(law: Threshold | Proportional, excess: float) -> None:
    for samples in (1, 64, 20_000):
        tensor = law(torch.tensor(excess, dtype=torch.float64), samples)
        assert tensor.item() == pytest.approx(law(excess, samples), rel=1e-15)


KNOBS = {
    "learning_rate": AdaptiveKL(1e-3, 0.01, Threshold(2.0, 1.5), every="minibatch"),
    "kl_coef": AdaptiveKL(1.0, 0.01, every="epoch"),
    "clip_range": AdaptiveClipFraction(0.2, 0.1, Proportional(50), every="epoch"),
    "ent_coef": AdaptiveKL(0.1, 0.02),  # after the rollout: the host's business
}


def test_controllers_move_as_on_the_host() -> None:
    knobs = [KnobSet({name: knob.bind(name) for name, knob in KNOBS.items()}) for _ in range(2)]
    device = DeviceControllers(knobs[1], torch.device("cpu"))
    device.fill()
    random = np.random.RandomState(1)
    for moment in ["minibatch", "epoch"] * 20:
        measured = {"kl": float(random.exponential(0.01)), "clip_fraction": float(random.choice([0.0, 0.05, 0.3]))}
        knobs[0].step(moment, measured, 64)
        on_device = {name: torch.tensor(value, dtype=torch.float64) for name, value in measured.items()}
        device.step(moment, on_device, 64, torch.tensor(True))
    device.hand_back(knobs[1])
    assert knobs[1].numbers() == pytest.approx(knobs[0].numbers(), rel=1e-12)
    assert knobs[0].numbers()["learning_rate"] != 1e-3
    assert knobs[1].controllers["kl_coef"].value == pytest.approx(knobs[0].controllers["kl_coef"].value)


def test_controllers_stand_still_after_a_stop_and_before_a_nan() -> None:
    knobs = KnobSet({"kl_coef": AdaptiveKL(1.0, 0.01, every="epoch").bind("kl_coef"), "clip_range": 0.2})
    device = DeviceControllers(knobs, torch.device("cpu"))
    device.fill()
    device.step("epoch", {"kl": torch.tensor(9.0)}, 64, torch.tensor(False))
    device.step("epoch", {"kl": torch.tensor(float("nan"))}, 64, torch.tensor(True))
    assert device.values["kl_coef"].item() == 1.0
    device.step("epoch", {"kl": torch.tensor(9.0)}, 64, torch.tensor(True))
    assert device.values["kl_coef"].item() == 2.0


def test_a_law_of_the_users_own_is_refused() -> None:
    controller = AdaptiveKL(1.0, 0.01, law=lambda excess, samples: 1.0, every="epoch")
    with pytest.raises(CompileError, match="kl_coef has a controller or a law of its own"):
        DeviceControllers(KnobSet({"kl_coef": controller.bind("kl_coef"), "clip_range": 0.2}), torch.device("cpu"))


@pytest.mark.parametrize(
    ("size", "batch_size"), [(64, 16), (65, 16), (10, 10), (7, 3), (64 * 300, 64), (64 * 300 + 5, 64)]
)
def test_recordings_make_an_epoch(size: int, batch_size: int) -> None:
    sizes = recording_sizes(size, batch_size)
    assert sum(count * rows for count, rows in sizes) == size
    assert all(count <= MINIBATCHES for count, _ in sizes)
    assert len(set(sizes)) <= 3  # recordings of an epoch
    assert [rows for count, rows in sizes for _ in range(count)] == [
        min(batch_size, size - start) for start in range(0, size, batch_size)
    ]
