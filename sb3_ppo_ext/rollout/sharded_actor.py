"""Acting shard by shard: each has its own random stream, and acts alike whichever others its process has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from sb3_ppo_ext.distributed.shards import ACTING, Shards
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.policies.exploration import exploration_of, exploration_replaced
from sb3_ppo_ext.rollout.actors import Acted, Actor
from sb3_ppo_ext.rollout.collect import Division
from sb3_ppo_ext.run import Run


class ActingStreams:
    """The random streams of the shards of this process during a rollout, and what gSDE has drawn from them."""

    def __init__(self, shards: Shards, moment: int, device: torch.device) -> None:
        """``moment``: the timesteps of the run before the rollout."""
        self.count = len(shards.own)
        self._generator = default_generator(device)
        self._states = [
            first_state(shards.stream(shard, ACTING, moment), self._generator.device) for shard in shards.own
        ]
        self._exploration: list[dict[str, Tensor]] = [{} for _ in shards.own]

    @contextmanager
    def drawn_from(self, index: int, policy: Any) -> Iterator[None]:
        """Lets the shard of that index draw, and explore by its own matrices, until the end of the block."""
        around = self._generator.get_state()
        self._generator.set_state(self._states[index])
        try:
            with exploration_replaced(policy, self._exploration[index]):
                yield
        finally:
            self._states[index] = self._generator.get_state()
            self._generator.set_state(around)

    def reset_noise(self, policy: Any, n_envs: int) -> None:
        """Draws gSDE's matrices for the environments of each shard."""
        for index in range(self.count):
            with self.drawn_from(index, policy):
                policy.reset_noise(n_envs // self.count)
                self._exploration[index] = {}  # the block puts back what it has replaced
                drawn = exploration_of(policy)
            self._exploration[index] = drawn

    def state_dict(self) -> dict[str, Any]:
        """The states in the middle of a rollout."""
        return {"generators": list(self._states), "exploration": list(self._exploration)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the states."""
        self._states, self._exploration = list(state["generators"]), list(state["exploration"])


def default_generator(device: torch.device) -> torch.Generator:
    """The generator that policies draw from on the device."""
    if device.type != "cuda":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]


def first_state(source: np.random.SeedSequence, device: torch.device) -> Tensor:
    """The state of a generator that is seeded by ``source``."""
    generator = torch.Generator(device)
    generator.manual_seed(int(source.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return generator.get_state()


def acting_streams_of(model: Any) -> ActingStreams | None:
    """The streams of the rollout that begins; None where there are no shards."""
    if model._shards is None:
        return None
    return ActingStreams(model._shards, model.timesteps_of_all_learns, model.device)


def division_of(run: Run, env: VecEnv) -> Division | None:
    """What the collection of this process's environments depends on; None where there are no shards."""
    if run.acting_streams is None:
        return None
    return Division(run.of_all(env.num_envs), partial(run.acting_streams.reset_noise, run.policy, env.num_envs))


class ShardedActor:
    """An ``Actor`` that gives the environments of one shard after the other to ``actor``."""

    def __init__(self, make: Callable[[Run], Actor], run: Run) -> None:
        """``make`` makes the actor for the environments of one shard."""
        self.policy, self.streams = run.policy, run.acting_streams
        observation = None if run.last_observation is None else parts_of(run.last_observation, self.streams.count)[0]
        self.actor = make(replace(run, last_observation=observation))

    def act(self, observation: Observation) -> Acted:
        """Actions, values and log-probabilities of observations [N, ...]."""
        results = []
        for index, part in enumerate(parts_of(observation, self.streams.count)):
            with self.streams.drawn_from(index, self.policy):
                results.append(self.actor.act(part))
        if len(results) == 1:
            return results[0]
        actions, *tensors = zip(*results, strict=True)
        return Acted(np.concatenate(actions), *map(torch.cat, tensors))

    def terminal_values(self, observations: list[Observation]) -> Iterable[Tensor]:
        """The value [1] of each observation."""
        return self.actor.terminal_values(observations)

    def last_values(self, observation: Observation, dones: np.ndarray) -> Tensor:
        """Values [N, 1] of the observations after the last step."""
        parts = zip(parts_of(observation, self.streams.count), np.split(dones, self.streams.count), strict=True)
        return torch.cat([self.actor.last_values(part, ended) for part, ended in parts])


def parts_of(observation: Any, count: int) -> list[Any]:
    """Observations [N, ...], tensors or arrays, as ``count`` parts of equal size."""
    if isinstance(observation, dict):
        parts = {key: parts_of(value, count) for key, value in observation.items()}
        return [{key: parts[key][index] for key in parts} for index in range(count)]
    size = len(observation) // count
    return [observation[index * size : (index + 1) * size] for index in range(count)]
