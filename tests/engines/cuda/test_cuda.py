"""On a GPU: recorded CUDA graphs learn what eager training on that GPU does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines.cuda import actor
from sb3_ppo_ext.engines.rows import COSTS, Costs
from sb3_ppo_ext.rollout.device_buffers import DeviceRolloutBuffer
from sb3_ppo_ext.rollout.device_minibatches import DeviceRollout
from sb3_ppo_ext.rollout.minibatches import Rollout
from tests.cases import CASES, model_of
from tests.environments import ACTIONS, OBSERVATIONS

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore"),  # compilers have much to say, once in a process, on any machine
]


@pytest.fixture(autouse=True)
def one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same order of rows in every epoch, on the host and on the device."""

    def orders(self: Rollout, batch_size: int) -> tuple[torch.Tensor, ...]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(7))
        return torch.split(order.to(self.buffer.device), batch_size)

    for kind in (Rollout, DeviceRollout):
        monkeypatch.setattr(kind, "orders", orders)


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions round to 10 bits there by default, and which order they round in is their library's choice."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def assert_close(model: PPOX, other: PPOX) -> None:
    assert model._n_updates == other._n_updates
    theirs = other.policy.state_dict()
    for key, tensor in model.policy.state_dict().items():
        scale = max(theirs[key].abs().max().item(), 1e-3)
        assert (tensor - theirs[key]).abs().max().item() <= 1e-3 * scale, key


@pytest.mark.parametrize("name", CASES)
def test_graphs_learn_what_eager_training_does(name: str) -> None:
    eager = model_of(name, device="cuda", compile=False).learn(64)
    graphs = model_of(name, device="cuda", compile=True)
    graphs._engines.actor_refused = True  # acting draws its noise in another way
    graphs.learn(64)
    assert graphs._engines.engine is not None and not graphs._engines.update_refused
    assert_close(graphs, eager)


@pytest.mark.parametrize("name", CASES)
def test_acting_by_a_graph(name: str) -> None:
    model = model_of(name, device="cuda", compile=True).learn(128)
    assert not model._engines.actor_refused
    buffer = model.rollout_buffer
    assert isinstance(buffer.values, torch.Tensor) and buffer.values.is_cuda
    rows = DeviceRollout(buffer, model.action_space, normalize_advantage=False).rows
    assert rows.action_log_prob.isfinite().all() and rows.action.float().std() > 0


class Reseeding(BaseCallback):
    """The same noise in every rollout, whatever else has drawn."""

    def _on_rollout_start(self) -> None:
        torch.manual_seed(5)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("name", ["discrete", "box"])
def test_values_and_log_probs_are_those_of_the_actions(name: str) -> None:
    seen: list[tuple[Any, ...]] = []

    def keep(known: dict[str, Any], _: dict[str, Any]) -> bool:
        seen.append(tuple(known[key] for key in ("obs_tensor", "actions", "values", "log_probs")))
        return True

    steps = 2 * actor.DRAWS + 16
    model = model_of(name, device="cuda", compile=True, n_steps=steps)
    before = copy.deepcopy(model.policy)
    model.learn(2 * steps, callback=keep)  # one rollout
    assert len(seen) == steps and not model._engines.actor_refused
    for obs, actions, values, log_probs in seen:
        with torch.no_grad():
            expected = before.evaluate_actions(obs, torch.as_tensor(actions, device="cuda"))
        torch.testing.assert_close(values, expected[0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(log_probs, expected[1], rtol=1e-3, atol=1e-4)
    if name == "box":  # the noise alone makes it
        assert len(torch.cat([log_probs for *_, log_probs in seen]).unique()) > 1.9 * steps
    assert seen[0][1].dtype == (np.int64 if name == "discrete" else np.float32)


def test_auto_records_where_much_is_planned_and_goes_on_after_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = model_of("box", device="cuda", compile=False).learn(192, Reseeding())
    model = model_of("box", device="cuda", compile="auto")
    model._engines.actor_refused = True  # as above
    model.learn(64, Reseeding())
    assert type(model.rollout_buffer) is RolloutBuffer and model._engines.engine is None
    monkeypatch.setitem(COSTS, "cuda", Costs(1.0, 1.0, 0.0))
    model.learn(64, Reseeding(), reset_num_timesteps=False)
    assert type(model.rollout_buffer) is DeviceRolloutBuffer and not model._engines.update_refused
    model.save(tmp_path / "model")
    again = PPOX.load(tmp_path / "model", env=model.env, device="cuda", force_reset=False)
    again._last_obs, again._last_episode_starts = model._last_obs, model._last_episode_starts
    again._engines.actor_refused = True
    again.learn(64, Reseeding(), reset_num_timesteps=False)
    assert type(again.rollout_buffer) is DeviceRolloutBuffer and not again._engines.update_refused
    assert_close(again, eager)
    on_cpu = PPOX.load(tmp_path / "model", env=model.env, device="cpu", compile=False).learn(64)
    assert type(on_cpu.rollout_buffer) is RolloutBuffer


def test_learning_in_pieces_is_learning_at_once() -> None:
    whole, pieces = (model_of("box", device="cuda", compile=True) for _ in range(2))
    whole.learn(192, Reseeding())
    for _ in range(3):
        pieces.learn(64, Reseeding(), reset_num_timesteps=False)
    assert not whole._engines.actor_refused and not pieces._engines.update_refused
    assert_close(pieces, whole)


def test_a_buffer_takes_what_comes_from_the_host_too() -> None:
    space = OBSERVATIONS["vector"]
    buffer = DeviceRolloutBuffer(1, space, ACTIONS["discrete"], "cuda", n_envs=3)
    values, log_probs = torch.tensor([[1.0], [2.0], [3.0]], device="cuda"), torch.zeros(3, device="cuda")
    observations, actions = np.stack([space.sample() for _ in range(3)]), np.array([[0], [1], [2]])
    buffer.add(observations, actions, np.ones(3), np.zeros(3), values, log_probs)
    assert (buffer.actions.tolist(), buffer.values.tolist()) == ([[[0], [1], [2]]], [[1, 2, 3]])
    np.testing.assert_array_equal(buffer.observations[0].cpu().numpy(), observations)
