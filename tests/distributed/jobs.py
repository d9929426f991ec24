"""Trainings that one process and several are compared on, each a function of a process's shards."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_ppo_ext import PPOX, AdaptiveKL, Threshold
from sb3_ppo_ext.distributed import join_processes, normalized_over_processes, reduce_gradients
from sb3_ppo_ext.distributed.shards import dealt
from sb3_ppo_ext.engines.cuda import engine
from sb3_ppo_ext.joint_start import normalized_for_all
from sb3_ppo_ext.rollout.shared_statistics import statistics_of
from tests.cases import CASES
from tests.engines.cuda.rehearsal import Rehearsed
from tests.environments import Toy
from tests.traced_graphs import run_as_traced

Result = dict[str, Any]
ENVS = 4  # of all processes


class OwnSpaces(Toy):
    """Its spaces, which it draws observations from, belong to it alone."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.observation_space = copy.deepcopy(self.observation_space)


def shares(shards: int, make: Callable[[int], gym.Env[Any, Any]]) -> VecEnv:
    """The environments of this process, each made by its index among all."""
    processes = join_processes()
    each = ENVS // shards
    own = [
        index
        for shard in dealt(shards, processes.count, processes.rank)
        for index in range(shard * each, (shard + 1) * each)
    ]
    return DummyVecEnv([partial(lambda index: Monitor(make(index)), index) for index in own])


def case_model(name: str, shards: int = 2, normalize: dict[str, Any] | None = None, **more: Any) -> PPOX:
    """A case of ``tests.cases`` over four environments, its minibatches divisible by the shards."""
    observation, action, policy, options = CASES[name]
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "seed": 3, "device": "cpu", "compile": False, **options}
    settings["batch_size"] = settings["batch_size"] // shards * shards
    environments = shares(shards, lambda index: OwnSpaces(observation, action, 10 + index))
    if normalize is not None:
        environments = VecNormalize(environments, **normalize)
    return PPOX(policy, environments, shards=shards, **{**settings, **more})


def result_of(model: PPOX) -> Result:
    """What has to be the same for any number of processes."""
    log = {key: value for key, value in model.logger.name_to_value.items() if not key.startswith("time/")}
    normalizing = model.get_vec_normalize_env()
    if normalizing is not None:
        log |= {f"normalization {index}": number for index, number in enumerate(numbers_of(normalizing).tolist())}
    return {
        "parameters": {name: tensor.clone() for name, tensor in model.policy.state_dict().items()},
        "log": log,
        "episodes": [(int(info["l"]), float(info["r"])) for info in model.ep_info_buffer or []],
        "knobs": model.knobs.numbers(),
        "counts": (model.num_timesteps, model._n_updates),
        "steps": [state["step"].item() for state in model.policy.optimizer.state.values()],
    }


def numbers_of(env: VecNormalize) -> np.ndarray:
    """All statistics of the layer."""
    return np.concatenate(
        [np.ravel(vars(rms)[name]) for _, rms in statistics_of(env) for name in ("mean", "var", "count")]
    )


def normalized_steps(sync: str) -> Result:
    """Statistics after a reset and steps by given actions; of one process those of a ``VecNormalize`` by itself."""
    model: Any = case_model("box", 2, normalize={}, vec_normalize_sync=sync)
    env, first = model.env, model._shards.first_of(model.n_envs)
    by_itself = model._processes.count == 1 and sync == "step"
    env.seed(5 + first)
    random = np.random.default_rng(0)
    with nullcontext() if by_itself else normalized_for_all(model):
        seen = [env.reset()]
        for _ in range(300):
            actions = random.uniform(-1, 1, (ENVS, *env.action_space.shape)).astype(np.float32)
            seen.append(env.step(actions[first : first + env.num_envs])[0])
    exact = numbers_of(env).tobytes()
    nothing: Result = {"parameters": {}, "log": {}, "episodes": [], "knobs": {}, "steps": []}
    return {**nothing, "counts": exact, "observations": [np.stack(seen)]}


def learned(name: str, shards: int = 2, rollouts: int = 2, **more: Any) -> Result:
    """A case after ``learn()``."""
    torch.set_num_threads(1)
    return result_of(case_model(name, shards, **more).learn(rollouts * ENVS * 16))


def cart_pole() -> Result:
    """Five rollouts of CartPole, with their observations."""
    environments = shares(2, lambda index: gym.make("CartPole-v1"))
    settings: dict[str, Any] = {"n_steps": 64, "batch_size": 64, "n_epochs": 4, "seed": 1, "device": "cpu"}
    model = PPOX("MlpPolicy", environments, shards=2, compile=False, **settings)
    seen = []
    inherited = model.train

    def train() -> None:
        seen.append(model.rollout_buffer.observations.copy())
        inherited()

    model.train = train  # type: ignore[method-assign]
    return {**result_of(model.learn(5 * ENVS * 64)), "observations": seen}


# Of the cases of ``tests.cases`` those that differ in what is reduced, or in the rows and noise of a shard.
COMPARED = (
    *("box", "discrete", "dict", "image", "gSDE", "target_kl, clip_range_vf", "last minibatch of one"),
    *("AdamW, separate networks", "everything", "minibatch controller, two rates, gSDE", "KL bound, multiplier"),
    *("stopped early, minibatch controller", "controllers of the epoch", "stopped early, two moments"),
)
BY_RECORDINGS = (
    *("everything", "stopped early, minibatch controller", "last minibatch of one"),
    "controllers of the epoch",
)
BY_GRAPHS = ("everything", "gSDE", "stopped early, minibatch controller", "last minibatch of one")


def continued() -> Result:
    """A model that was saved and loaded: the file is that of one process, with all its environments."""
    model = case_model("minibatch controller, two rates, gSDE").learn(ENVS * 16)
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    loaded = PPOX.load(file, env=model.env, device="cpu")
    loaded.learn(2 * ENVS * 16, reset_num_timesteps=False)
    file.seek(0)
    saved_envs = load_from_zip_file(file)[0]["n_envs"]  # type: ignore[index]
    return {**result_of(loaded), "knobs": {**loaded.knobs.numbers(), "environments": saved_envs}}


def torchrl_rows(rows: range) -> Any:
    """Some of 64 rows, the same in every process."""
    from tensordict import TensorDict

    numbers = torch.Generator().manual_seed(2)
    columns = {"observation": (4,), "action": (2,), "advantage": (1,), "value_target": (1,), "state_value": (1,)}
    table = {name: torch.randn(64, *shape, generator=numbers) for name, shape in columns.items()}
    table["action_log_prob"] = -2.5 + 0.2 * torch.randn(64, generator=numbers)
    return TensorDict(table, batch_size=64)[list(rows)]


def by_graphs(name: str) -> Result:
    """A case through the graphs of the CPU's engine, as they were traced."""
    with pytest.MonkeyPatch.context() as patch:
        run_as_traced(patch)
        return learned(name, compile=True)


def by_recordings(name: str) -> Result:
    """A case through the engine of the GPU where there are several processes, by itself eagerly."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(engine.RECORDERS, "cpu", Rehearsed)
        return learned(name, compile=join_processes().count > 1)


def torchrl_loop() -> Result:
    """A loop of TorchRL over 64 rows, of which each process has its part: a penalty, and a rate that answers to KL."""
    from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss

    model = case_model("box", kl_coef=0.5, kl_estimator="k3", max_grad_norm=0.05)
    processes = join_processes()
    loss = PPOXLoss.from_ppox(model, normalize_advantage=False)
    optimizer = torch.optim.Adam(model.policy.parameters(), lr=3e-3)
    knobs: dict[str, Any] = {"lr": AdaptiveKL(3e-3, 1e-3, Threshold(1.5, 2.0), every="minibatch")}
    scheduler = KnobScheduler(loss, knobs, total_frames=256, optimizer=optimizer)
    part = 16 // processes.count
    for start in range(processes.rank * part, 64, 16):
        batch = torchrl_rows(range(start, start + part))
        batch["advantage"] = normalized_over_processes(batch["advantage"])
        found = loss(batch)
        optimizer.zero_grad()
        found.select(*[key for key in loss.out_keys if key.startswith("loss_")]).sum(reduce=True).backward()
        statistics = torch.stack([found["kl_approx"], found["clip_fraction"]])
        statistics = reduce_gradients(model.policy.parameters(), statistics)
        torch.nn.utils.clip_grad_norm_(model.policy.parameters(), 0.05)
        optimizer.step()
        scheduler.step_controllers("minibatch", {"kl": statistics[0], "clip_fraction": statistics[1]}, 16)
    return {**result_of(model), "log": {}, "knobs": scheduler.values}


JOBS: dict[str, Callable[[], Result]] = {
    **{name: partial(learned, name) for name in COMPARED},
    **{f"4 shards, {name}": partial(learned, name, 4) for name in ("box", "gSDE", "everything", "dict")},
    **{f"graphs, {name}": partial(by_graphs, name) for name in BY_GRAPHS},
    **{f"recordings, {name}": partial(by_recordings, name) for name in BY_RECORDINGS},
    "CartPole": cart_pole,
    "continued": continued,
    "TorchRL": torchrl_loop,
    "VecNormalize": partial(learned, "box", normalize={}),
    "VecNormalize at each step": partial(learned, "box", normalize={}, vec_normalize_sync="step"),
    "VecNormalize of dict, 4 shards": partial(learned, "dict", 4, normalize={"norm_obs_keys": ["a"]}),
    "steps of VecNormalize": partial(normalized_steps, "rollout"),
    "steps of VecNormalize at each step": partial(normalized_steps, "step"),
}
