"""The environments of one worker. This class runs in a Ray actor; nothing of it needs Ray."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple, TypeVar

import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env.patch_gym import _patch_env

from sb3_ppo_ext.vec_env.remote.episodes import Call, EnvRecord, Start
from sb3_ppo_ext.vec_env.remote.generators import generators_of, set_generators
from sb3_ppo_ext.vec_env.remote.monitors import appending, clock_of, set_clock
from sb3_ppo_ext.vec_env.remote.packed import LOST, Block, Failure, Reply, failure_of, packed, with_reward

Result = TypeVar("Result")


class Built(NamedTuple):
    """What a worker reports of the environments that it has made."""

    spaces: tuple[Any, Any]  # of observations and actions
    lost: dict[int, str]  # why an episode was not repeated, by row
    process: int


class Environments:
    """The environments of a worker, by row: their index among all. An exception is returned as a ``Failure``."""

    def __init__(self) -> None:
        self._envs: dict[int, Any] = {}
        self._fresh: dict[int, tuple[Any, dict[str, Any], Start]] = {}  # first results of episodes after a cut
        self._checksums: dict[int, int] = {}  # of the current episodes
        self._doing: tuple[int | None, str] = (None, "")

    def build(self, records: bytes, limit: float) -> Built | Failure:
        """Makes the environments of packed records, by row, and repeats their episodes; or new ones begin.

        They do where the environments do not repeat them, or not within ``limit`` seconds.
        """
        return self._guarded("construction", lambda: self._build(pickle.loads(records), time.monotonic() + limit))

    def reset(self, rows: list[int], arguments: bytes) -> Reply | Failure:
        """Begins an episode in each row."""
        return self._guarded("reset", lambda: self._reset(rows, pickle.loads(arguments)))

    def step(self, rows: list[int], actions: Any) -> Reply | Failure:
        """Steps each row once; where an episode ends, the next one begins."""
        # Arrays come from Ray's store, which cannot be written to; environments may do so.
        taken = np.array(actions) if isinstance(actions, np.ndarray) else actions
        return self._guarded("step", lambda: self._step(rows, taken))

    def call(self, rows: list[int], calls: bytes) -> bytes | Failure:
        """Does a ``Call`` in each row; the results, packed."""
        return self._guarded("call", lambda: packed(list(map(self._call, rows, pickle.loads(calls)))))

    def look(self, rows: list[int], what: bytes) -> bytes | Failure:
        """An attribute, whether it exists, a picture, or whether there is a wrapper of a class; changes nothing."""
        return self._guarded("look", lambda: packed(list(map(self._look, rows, pickle.loads(what)))))

    def close(self) -> None:
        """Closes every environment."""
        for env in self._envs.values():
            env.close()
        self._envs = {}

    def _guarded(self, action: str, function: Callable[[], Result]) -> Result | Failure:
        self._doing = (None, action)
        try:
            return function()
        except Exception as error:  # whatever a user's environment raises
            return failure_of(error, *self._doing)

    def _build(self, records: dict[int, EnvRecord], deadline: float) -> Built:
        lost = {}
        for row, record in records.items():
            self._make(row, record)
            if record.begun:
                reason = record.obstacle or self._repeat(row, record, deadline)
                if reason is not None:
                    lost[row] = reason
                    self._begin_anew(row, record)
        envs = list(self._envs.values())
        if len({id(env.unwrapped) for env in envs}) < len(envs):
            raise ValueError("env_fns: each function has to return an environment of its own, but some return the same")
        return Built((envs[0].observation_space, envs[0].action_space), lost, os.getpid())

    def _make(self, row: int, record: EnvRecord) -> None:
        self._doing = (row, "construction")
        with appending(record.made):
            self._envs[row] = env = _patch_env(record.make())
        if record.start is not None and record.start.clock is not None:
            set_clock(env, record.start.clock)
        for call in record.settings.values():
            call.on(env)

    def _repeat(self, row: int, record: EnvRecord, deadline: float) -> str | None:
        """Repeats an episode; None where every observation and reward came out equal, else the reason."""
        env, checksum, count = self._envs[row], 0, len(record.events)
        block = Block(env.observation_space, 1)
        try:
            if record.start is not None:
                set_generators(env, record.start.generators)
                checksum = block.put(0, env.reset(**record.start.arguments)[0])
            for event in record.events:
                if time.monotonic() > deadline:
                    return f"to repeat its {count} steps takes longer than replay_timeout"
                if isinstance(event, Call):
                    event.on(env)
                    continue
                observation, reward, terminated, truncated, _ = env.step(event)
                if terminated or truncated:
                    return f"it ended when its {count} steps were repeated"
                checksum = block.put(0, observation, with_reward(reward, checksum))
        except Exception as error:  # whatever a user's environment raises
            return f"{type(error).__name__} when its {count} steps were repeated: {error}"
        self._checksums[row] = checksum
        return None if checksum == record.checksum else f"its {count} steps, repeated, gave other numbers"

    def _begin_anew(self, row: int, record: EnvRecord) -> None:
        """Begins the first episode after a cut, of which the next step will be the first result."""
        if record.obstacle is None:  # what was repeated has left traces
            self._envs.pop(row).close()
            self._make(row, record)
        for call in record.calls():
            call.on(self._envs[row])
        self._fresh[row] = self._begun(row, {"seed": record.next_seed()})

    def _begun(self, row: int, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any], Start]:
        self._doing = (row, "reset")
        env = self._envs[row]
        start = Start(generators_of(env), arguments, clock_of(env))
        return *env.reset(**arguments), start

    def _reset(self, rows: list[int], arguments: list[dict[str, Any]]) -> Reply:
        block = Block(self._envs[rows[0]].observation_space, len(rows))
        for index, row in enumerate(rows):
            self._fresh.pop(row, None)
            self._checksums[row] = block.begin(index, *self._begun(row, arguments[index]))
        return block.reply()

    def _step(self, rows: list[int], actions: Any) -> Reply:
        block = Block(self._envs[rows[0]].observation_space, len(rows))
        for index, row in enumerate(rows):
            if row in self._fresh:
                block.done[index], block.infos[index] = True, {"TimeLimit.truncated": True, LOST: True}
                self._checksums[row] = block.begin(index, *self._fresh.pop(row))
                continue
            self._doing = (row, "step")
            observation, reward, terminated, truncated, info = self._envs[row].step(actions[index])
            info["TimeLimit.truncated"] = truncated and not terminated
            block.reward[index], block.infos[index] = reward, info
            if terminated or truncated:
                info["terminal_observation"] = deepcopy(observation)  # the reset may write over the original
                block.done[index] = True
                self._checksums[row] = block.begin(index, *self._begun(row, {}))
            else:
                before = with_reward(reward, self._checksums.get(row, 0))
                self._checksums[row] = block.put(index, observation, before)
        return block.reply()

    def _call(self, row: int, call: Call) -> Any:
        self._doing = (row, f"{call.kind} {call.name!r}")
        result = call.on(self._envs[row])
        if not call.setting:
            self._fresh.pop(row, None)
            self._checksums[row] = 0
        return result

    def _look(self, row: int, what: tuple[str, Any]) -> Any:
        self._doing = (row, what[0])
        env, argument = self._envs[row], what[1]
        if what[0] == "get_attr":
            return env.get_wrapper_attr(argument)
        if what[0] == "has_attr":
            return env.has_wrapper_attr(argument)
        return env.render() if what[0] == "render" else is_wrapped(env, argument)
