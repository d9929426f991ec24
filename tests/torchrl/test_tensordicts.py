"""A rollout as a TensorDict and back: every number where TorchRL looks for it, and a clear error where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from torchrl.objectives.value import GAE

from sb3_ppo_ext.rollout.device_buffers import DeviceDictRolloutBuffer, DeviceRolloutBuffer
from sb3_ppo_ext.tensordicts import rollout_to_tensordict, tensordict_to_rollout
from tests.environments import ACTIONS, OBSERVATIONS
from tests.rollout_buffers import N, T, filled

ARRAYS = ("actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages")
LAST = torch.tensor([0.3, -1.0, 2.0])
DONES = np.array([False, True, False])


def rollout(action: str = "box", observation: str = "vector") -> RolloutBuffer:
    torch.manual_seed(0)
    return filled(action, observation)


def converted(action: str = "box", observation: str = "vector") -> TensorDict:
    return rollout_to_tensordict(rollout(action, observation))


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_there_and_back_is_exact(action: str, observation: str) -> None:
    buffer = rollout(action, observation)
    tensordict = rollout_to_tensordict(buffer)
    assert tensordict.names == ["time", None] and tensordict.batch_size == (T, N)
    empty = type(buffer)(T, OBSERVATIONS[observation], ACTIONS[action], "cpu", n_envs=N)
    tensordict_to_rollout(tensordict, empty)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(empty, name), getattr(buffer, name), strict=True)
    for mine, theirs in zip(_observations(empty), _observations(buffer), strict=True):
        np.testing.assert_array_equal(mine, theirs, strict=True)
    assert empty.full and empty.pos == T
    next(empty.get(4))  # ready for training


@pytest.mark.parametrize("observation", OBSERVATIONS)
def test_a_buffer_of_tensors_is_filled_and_read_like_one_of_arrays(observation: str) -> None:
    tensordict = converted("discrete", observation)
    kind: Any = DeviceDictRolloutBuffer if observation == "dict" else DeviceRolloutBuffer
    device = kind(T, OBSERVATIONS[observation], ACTIONS["discrete"], "cpu", n_envs=N)
    tensordict_to_rollout(tensordict, device)
    assert isinstance(device.values, torch.Tensor)
    again = rollout_to_tensordict(device)
    assert (again == tensordict).all()
    device.actions.zero_()
    assert (again == tensordict).all()  # a copy


def _observations(buffer: RolloutBuffer) -> list[np.ndarray]:
    return list(buffer.observations.values()) if isinstance(buffer.observations, dict) else [buffer.observations]


def test_numbers_stand_under_torchrls_keys_at_their_step() -> None:
    buffer = rollout("discrete", "dict")
    tensordict = rollout_to_tensordict(buffer)
    for key, array in (
        ("action_log_prob", buffer.log_probs),
        ("action", buffer.actions[..., 0]),
        (("observation", "a"), buffer.observations["a"]),
        ("state_value", buffer.values[..., None]),
        ("advantage", buffer.advantages[..., None]),
        ("value_target", buffer.returns[..., None]),
        (("next", "reward"), buffer.rewards[..., None]),
        ("is_init", buffer.episode_starts[..., None].astype(bool)),
    ):
        np.testing.assert_array_equal(tensordict[key].numpy(), array, strict=True)


def test_the_tensordict_is_a_copy() -> None:
    buffer = rollout()
    tensordict = rollout_to_tensordict(buffer)
    before = tensordict.clone()
    for name in (*ARRAYS, "observations"):
        getattr(buffer, name)[:] = 7
    assert (tensordict == before).all()


class Copies(TorchDispatchMode):
    """Counts the operations that write a tensor anew."""

    NAMES = ("aten._to_copy.default", "aten.clone.default", "aten.copy_.default", "aten.cat.default")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(function) in self.NAMES
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("observation", ["vector", "dict"])
def test_every_array_is_copied_once(observation: str) -> None:
    buffer = rollout("discrete", observation)
    with Copies() as copies:
        tensordict = rollout_to_tensordict(buffer)
    assert copies.count == len(list(tensordict.keys(True, True)))


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.99, 1.0), (0.95, 0.97)])
def test_torchrls_gae_equals_the_buffers_exactly(gamma: float, gae_lambda: float) -> None:
    # To the bit where float32(gamma) float32(lambda), which TorchRL computes, is float32(gamma lambda).
    buffer = rollout()
    buffer.gamma, buffer.gae_lambda = gamma, gae_lambda
    buffer.compute_returns_and_advantage(LAST, DONES)
    tensordict = rollout_to_tensordict(buffer, last_values=LAST, dones=DONES)
    estimated = GAE(gamma=gamma, lmbda=gae_lambda, value_network=None)(tensordict.clone())
    for key in ("advantage", "value_target"):
        torch.testing.assert_close(estimated[key], tensordict[key], rtol=0, atol=0)
    other = GAE(gamma=0.8, lmbda=0.9, value_network=None)(tensordict.clone())
    buffer.gamma, buffer.gae_lambda = 0.8, 0.9
    buffer.compute_returns_and_advantage(LAST, DONES)
    torch.testing.assert_close(other["advantage"], rollout_to_tensordict(buffer)["advantage"], rtol=1e-5, atol=1e-6)


def test_time_may_stand_last_as_in_a_collectors_batch_or_alone() -> None:
    tensordict = converted()
    empty = RolloutBuffer(T, OBSERVATIONS["vector"], ACTIONS["box"], "cpu", n_envs=N)
    tensordict_to_rollout(tensordict.transpose(0, 1), empty)
    np.testing.assert_array_equal(empty.rewards, tensordict["next", "reward"][..., 0].numpy())
    single = RolloutBuffer(T, OBSERVATIONS["vector"], ACTIONS["box"], "cpu", n_envs=1)
    tensordict_to_rollout(tensordict[:, 1], single)
    np.testing.assert_array_equal(single.rewards[:, 0], empty.rewards[:, 1])


def without(key: str) -> TensorDict:
    return converted().exclude(key)


def replaced(key: str, change: Callable[[torch.Tensor], torch.Tensor]) -> TensorDict:
    tensordict = converted()
    tensordict[key] = change(tensordict[key])
    return tensordict


BAD: dict[str, tuple[Callable[[], TensorDict], str]] = {
    "no names": (lambda: TensorDict({"advantage": torch.zeros(T, N, 1)}, [T, N]), r'\[None, None\].*named "time"'),
    "other size": (lambda: converted()[: T - 1], r"\(5, 3\), the buffer \(6, 3\)"),
    "no advantage": (lambda: without("advantage"), "'advantage' is missing.*GAE"),
    "no is_init": (lambda: without("is_init"), "'is_init' is missing.*InitTracker"),
    "flat advantage": (
        lambda: replaced("advantage", lambda x: x[..., 0]),
        r"'advantage' has shape \(6, 3\); \(6, 3, 1\)",
    ),
    "log-prob [T, N, 1]": (
        lambda: replaced("action_log_prob", lambda x: x[..., None]),
        r"'action_log_prob' has shape \(6, 3, 1\); \(6, 3\) is needed",
    ),
    "double": (lambda: replaced("state_value", torch.Tensor.double), "'state_value' is float64; float32 is needed"),
    "integer action": (lambda: replaced("action", torch.Tensor.long), "'action' is int64; float32"),
    "nested": (lambda: converted("box", "dict"), "'observation' is a TensorDict"),
    "mask": (lambda: converted().set("mask", torch.ones(T, N, dtype=torch.bool)), "no place for the key 'mask'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_by_name_and_leaves_the_buffer_alone(name: str) -> None:
    make, message = BAD[name]
    buffer = rollout()
    before = buffer.rewards.copy()
    with pytest.raises(ValueError, match=message):
        tensordict_to_rollout(make(), buffer)
    np.testing.assert_array_equal(buffer.rewards, before)


def test_a_buffer_that_is_not_a_rollout_any_more_or_not_yet_is_refused() -> None:
    buffer = rollout()
    next(buffer.get(4))
    with pytest.raises(ValueError, match=r"get\(\) has flattened.*on_rollout_end"):
        rollout_to_tensordict(buffer)
    with pytest.raises(ValueError, match="holds 0 of 6 steps"):
        rollout_to_tensordict(RolloutBuffer(T, OBSERVATIONS["vector"], ACTIONS["box"], "cpu", n_envs=N))
    with pytest.raises(ValueError, match="both or neither"):
        rollout_to_tensordict(rollout(), last_values=LAST)
    with pytest.raises(ValueError, match=r"last_values has shape \(2,\); one number for each of 3"):
        rollout_to_tensordict(rollout(), last_values=LAST[:2], dones=DONES)
