"""A rollout is collected as Stable-Baselines3 collects it: the same numbers, the same calls, the same faults."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_ppo_ext import PPOX
from tests.environments import Toy
from tests.test_parity import CASES

ARRAYS = ("actions", "rewards", "returns", "episode_starts", "values", "log_probs", "advantages")


def environments(observation: str = "vector", action: str = "box", count: int = 3) -> VecEnv:
    return DummyVecEnv([partial(lambda i: Monitor(Toy(observation, action, 7 + i)), index) for index in range(count)])


def plain(value: Any) -> Any:
    """Something to be compared with ``assert_same``; what differs between two runs by nature is left out."""
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key != "t"}  # seconds since the start
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if isinstance(value, (bool, int, float, np.generic)) else type(value).__name__.replace("PPOX", "PPO")


def assert_same(mine: Any, theirs: Any, *, where: str = "") -> None:
    assert type(mine) is type(theirs), where
    if isinstance(mine, dict):
        assert mine.keys() == theirs.keys(), where
        for key in mine:
            assert_same(mine[key], theirs[key], where=f"{where}[{key!r}]")
    elif isinstance(mine, list):
        assert len(mine) == len(theirs), where
        for index, pair in enumerate(zip(mine, theirs, strict=True)):
            assert_same(*pair, where=f"{where}[{index}]")
    elif isinstance(mine, np.ndarray):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, where
        np.testing.assert_array_equal(mine, theirs, err_msg=where)
    else:
        assert mine == theirs, where


class Recorder(BaseCallback):
    """Keeps what callbacks see: a copy when they see it, and the objects themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []
        self.kept: list[tuple[dict[str, Any], Any]] = []

    def _on_rollout_start(self) -> None:
        self.calls.append("start")

    def _on_step(self) -> bool:
        self._note()
        return True

    def _on_rollout_end(self) -> None:
        self._note()

    def _note(self) -> None:
        own = {"actor_of", "actor", "step", "sampled"}  # what PPOX has besides
        seen = {name: value for name, value in self.locals.items() if name not in own}
        self.calls.append(plain(seen))
        arrays = {name: seen[name] for name in ("obs_tensor", "values", "log_probs", "new_obs", "dones", "infos")}
        self.kept.append((arrays, plain(arrays)))


def collected(algorithm: type[PPO], env: VecEnv, policy: Any = "MlpPolicy", **options: Any) -> tuple[PPO, Recorder]:
    settings = {"n_steps": 24, "batch_size": 12, "n_epochs": 2, "seed": 3, "device": "cpu", **options}
    model, recorder = algorithm(policy, env, **settings), Recorder()
    return model.learn(2 * 24 * env.num_envs, callback=recorder), recorder


def state(model: PPO) -> dict[str, Any]:
    buffer = model.rollout_buffer
    flattened = {name: getattr(buffer, name) for name in ARRAYS}
    if not buffer.generator_ready:  # train() has flattened Stable-Baselines3's
        flattened |= {name: buffer.swap_and_flatten(flattened[name]) for name in ARRAYS if name not in UNFLATTENED}
    attributes = ("_last_obs", "_last_episode_starts", "num_timesteps", "_n_updates")
    return {
        "buffer": plain(flattened),
        "pos, full": [buffer.pos, buffer.full],
        "episodes": plain(list(model.ep_info_buffer or [])),
        "parameters": plain(dict(model.policy.state_dict())),
        **{name: plain(getattr(model, name)) for name in attributes},
    }


UNFLATTENED = ("rewards", "episode_starts")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_rollouts_and_what_callbacks_see_are_ppo_s(name: str) -> None:
    observation, action, policy, options = CASES[name]
    (ppo, theirs), (ppox, mine) = (
        collected(algorithm, environments(observation, action), policy, **options) for algorithm in (PPO, PPOX)
    )
    assert_same(mine.calls, theirs.calls)
    assert_same(state(ppox), state(ppo))


def test_what_a_callback_keeps_is_not_overwritten() -> None:
    _, recorder = collected(PPOX, environments())
    for arrays, then in recorder.kept:
        assert_same(plain(arrays), then)


def test_the_buffer_s_arrays_are_new_for_every_rollout() -> None:
    model, _ = collected(PPOX, environments())
    kept = {name: getattr(model.rollout_buffer, name) for name in ARRAYS}
    before = plain(kept)
    model.learn(72)
    assert_same(plain(kept), before)


class Meddler(BaseCallback):
    """Changes rewards in place, as callbacks that add an intrinsic reward do."""

    def _on_step(self) -> bool:
        self.locals["rewards"] += 0.5
        self.locals["values"] *= 2
        return True


def test_a_callback_may_change_the_step_in_place() -> None:
    states: list[Any] = []
    for algorithm in (PPO, PPOX):
        model = algorithm("MlpPolicy", environments(), n_steps=24, batch_size=18, seed=0, device="cpu")
        states.append(state(model.learn(72, callback=Meddler())))
    assert_same(*states)


class Leaving(BaseCallback):
    """Stops at a step, by ``False`` or by an exception."""

    def __init__(self, error: type[BaseException] | None) -> None:
        super().__init__()
        self.error = error

    def _on_step(self) -> bool:
        if self.n_calls == 31 and self.error is not None:
            raise self.error("stopped")
        return self.n_calls != 31


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_a_model_stopped_in_a_rollout_saves_loads_and_continues(
    error: type[BaseException] | None, tmp_path: Path
) -> None:
    states: list[Any] = []
    for algorithm in (PPO, PPOX):
        env = environments()
        model = algorithm("MlpPolicy", env, n_steps=24, batch_size=18, seed=0, device="cpu")
        if error is None:
            model.learn(10_000, callback=Leaving(None))
        else:
            with pytest.raises(error, match="stopped"):
                model.learn(10_000, callback=Leaving(error))
        assert model.num_timesteps == 31 * 3
        model.save(tmp_path / algorithm.__name__)
        torch.manual_seed(1), np.random.seed(1)
        continued = algorithm.load(tmp_path / algorithm.__name__, env=env, seed=None, force_reset=False, device="cpu")
        torch.manual_seed(2), np.random.seed(2)
        states.append(state(model.learn(72, reset_num_timesteps=False)))
        torch.manual_seed(2), np.random.seed(2)
        states.append(state(continued.learn(72, reset_num_timesteps=False)))
    assert_same(states[2], states[0])
    assert_same(states[3], states[1])


class OwnAdd(RolloutBuffer):
    def add(self, obs: Any, action: Any, reward: np.ndarray, *args: Any) -> None:
        super().add(obs, action, 2 * reward, *args)


class OwnAdvantage(RolloutBuffer):
    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= 3


class OwnForward(ActorCriticPolicy):
    def forward(self, obs: Any, deterministic: bool = False) -> Any:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, values + 1, log_prob


class OwnPieces(ActorCriticPolicy):
    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return super().extract_features(obs, features_extractor) * 2

    def _get_action_dist_from_latent(self, latent_pi: torch.Tensor) -> Any:
        return super()._get_action_dist_from_latent(latent_pi - 1)

    def predict_values(self, obs: Any) -> torch.Tensor:
        return super().predict_values(obs) + 5


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("MlpPolicy", {"rollout_buffer_class": OwnAdd}),
        ("MlpPolicy", {"rollout_buffer_class": OwnAdvantage}),
        (OwnForward, {}),
        (OwnPieces, {}),
        ("MlpPolicy", {"policy_kwargs": {"activation_fn": torch.nn.ReLU, "net_arch": {"pi": [8], "vf": []}}}),
    ],
)
@pytest.mark.parametrize("action", ["box", "discrete"])
def test_what_a_user_replaced_is_used(policy: Any, options: dict[str, Any], action: str) -> None:
    (ppo, theirs), (ppox, mine) = (
        collected(algorithm, environments(action=action), policy, **options) for algorithm in (PPO, PPOX)
    )
    assert_same(mine.calls, theirs.calls)
    assert_same(state(ppox), state(ppo))


def test_hooks_on_the_policy_s_layers_are_called() -> None:
    model = PPOX("MlpPolicy", environments(), n_steps=24, batch_size=18, seed=0, n_epochs=1, device="cpu")
    seen: list[tuple[int, ...]] = []
    model.policy.mlp_extractor.policy_net[0].register_forward_hook(lambda m, i, out: seen.append(tuple(out.shape)))
    model.learn(72)
    assert seen.count((3, 64)) == 24 and seen.count((18, 64)) == 4


class Mixin(PPO):
    rollouts = 0

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        self.rollouts += 1
        return super().collect_rollouts(*args, **kwargs)


class Mixed(PPOX, Mixin):
    infos = 0

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: np.ndarray | None = None) -> None:
        self.infos += 1
        super()._update_info_buffer(infos, dones)


def test_overridden_methods_of_the_algorithm_are_called() -> None:
    model = Mixed("MlpPolicy", environments(), n_steps=24, batch_size=18, device="cpu").learn(144)
    assert model.rollouts == 2 and model.infos == 48


def test_with_vecnormalize_and_other_rewards() -> None:
    def wrapped() -> VecEnv:
        envs = DummyVecEnv([partial(TransformReward, Toy("vector", "box"), lambda reward: float(reward) / 3)] * 1)
        return VecNormalize(envs)

    (ppo, theirs), (ppox, mine) = (collected(algorithm, wrapped()) for algorithm in (PPO, PPOX))
    assert_same(mine.calls, theirs.calls)
    assert_same(state(ppox), state(ppo))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete", "multibinary"])
def test_parameters_that_are_not_finite_stop_the_rollout_where_they_stop_ppo_s(action: str, value: float) -> None:
    outcomes, generators = [], []
    for algorithm in (PPO, PPOX):
        model = algorithm("MlpPolicy", environments(action=action), n_steps=24, batch_size=18, seed=0, device="cpu")
        with torch.no_grad():
            model.policy.get_parameter("action_net.bias")[0] = value
        _, callback = model._setup_learn(72)
        message = ""
        try:
            model.collect_rollouts(model.env, callback, model.rollout_buffer, 24)  # type: ignore[arg-type]
        except ValueError as error:
            message = str(error.__cause__ or error).partition("\n")[0]
        outcomes.append((message, model.num_timesteps))
        generators.append(torch.get_rng_state())
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] or torch.equal(*generators)  # nobody goes on drawing after an error


def test_a_discrete_observation_and_one_environment() -> None:
    class Rooms(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Discrete(5)

    (ppo, theirs), (ppox, mine) = (collected(algorithm, DummyVecEnv([Rooms])) for algorithm in (PPO, PPOX))
    assert_same(mine.calls, theirs.calls)
    assert_same(state(ppox), state(ppo))


def test_recorder_tells_two_seeds_apart() -> None:
    (_, one), (_, other) = (collected(PPOX, environments(), seed=seed) for seed in (3, 4))
    with pytest.raises(AssertionError):
        assert_same(one.calls, copy.copy(other.calls))
