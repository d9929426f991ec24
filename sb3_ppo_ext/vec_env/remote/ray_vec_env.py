"""``RayVecEnv``: environments in Ray actors, as a VecEnv of Stable-Baselines3."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_ppo_ext.vec_env.remote.arguments import WorkerSettings, dealt, free_places, functions_of, imported_ray
from sb3_ppo_ext.vec_env.remote.calls import Pending, collect, submit
from sb3_ppo_ext.vec_env.remote.crew import Crew
from sb3_ppo_ext.vec_env.remote.episodes import Call, EnvRecord, MakeEnv
from sb3_ppo_ext.vec_env.remote.packed import LOST, Array, Columns, Reply, empty_columns, packed_with_code


class RayVecEnv(VecEnv):
    """
    Environments in Ray actors, on the cores of one machine or on those of a cluster, many in each actor.

    Its results are those of ``DummyVecEnv``: the same seeds, numbers and infos, in arrays that may be written to. A
    worker that dies or hangs is replaced. The new one repeats the episodes from their start, which is compared with
    what was seen to the last bit, so that the run goes on as if nothing had happened. An environment that does not
    repeat its episode begins a new one: the step that was lost ends the old one as a time limit would, with reward 0
    and ``info["worker_lost"]``, and ``PPOX`` leaves its row out of the update. ``RayWorkerWarning`` reports both.

    What an environment raises is raised here, as an exception of its class that names worker and environment.

    :param env_fns: a function per environment, as for ``SubprocVecEnv``, or the id of a task
    :param n_envs: the number of environments, for an id
    :param seed: as a call of ``seed``: environment i gets ``seed + i`` at the first reset
    :param env_kwargs: the task's arguments, for an id
    :param envs_per_worker: how many environments share a worker; None: as many workers as the cluster has free places
    :param resources: of each worker, by Ray's names, as ``{"CPU": 1, "GPU": 0.1}``; one CPU where that is not named
    :param step_timeout: seconds after which a worker that has not answered a call counts as hung; None: never
    :param start_timeout: seconds that the start of workers may take
    :param min_workers: with how many workers to go on where no more start in time; they share the environments.
        None: all of them are needed
    :param max_replacements: of workers within an hour; one more is an error
    :param replay_timeout: seconds within which a new worker repeats episodes; longer ones are cut
    :param replace_on: exceptions of an environment that are answered by another worker, like a death, instead of raised
    """

    def __init__(
        self,
        env_fns: Sequence[MakeEnv] | str,
        n_envs: int | None = None,
        seed: int | None = None,
        *,
        env_kwargs: dict[str, Any] | None = None,
        envs_per_worker: int | None = None,
        resources: dict[str, float] | None = None,
        step_timeout: float | None = 300.0,
        start_timeout: float = 600.0,
        min_workers: int | None = None,
        max_replacements: int = 10,
        replay_timeout: float = 60.0,
        replace_on: tuple[type[BaseException], ...] = (),
    ) -> None:
        functions = functions_of(env_fns, n_envs, env_kwargs)
        settings = WorkerSettings(
            *(resources or {}, step_timeout, start_timeout, replay_timeout, min_workers, max_replacements, replace_on)
        )
        dealt(len(functions), envs_per_worker, 1.0)  # refuses what is wrong before Ray starts
        ray = imported_ray()
        rows = dealt(len(functions), envs_per_worker, free_places(ray.available_resources(), settings.amounts()))
        self._records = [EnvRecord(function) for function in functions]
        self._crew = Crew(ray, settings, self._records, rows)
        self._pending: Pending | None = None
        self._last: list[tuple[Columns, int]] = [({}, 0)] * len(functions)  # where the last observations are
        super().__init__(len(functions), *self._crew.spaces)
        if seed is not None:
            self.seed(seed)

    @property
    def replacements(self) -> int:
        """The workers that were replaced so far."""
        return self._crew.replacements

    @property
    def lost_episodes(self) -> int:
        """The episodes that were cut because their worker was lost."""
        return sum(record.losses for record in self._records)

    def reset(self) -> VecEnvObs:
        """Begins an episode everywhere; seeds and options are used once."""
        self._finish()
        arguments: list[dict[str, Any]] = [
            {"seed": seed, "options": options} if options else {"seed": seed}
            for seed, options in zip(self._seeds, self._options, strict=True)
        ]
        self._submit("reset", lambda rows: packed_with_code([arguments[row] for row in rows]))
        self._finish()
        self._reset_seeds()
        self._reset_options()
        return self._observation()

    def step_async(self, actions: Any) -> None:
        """Sends the actions; the workers step meanwhile."""
        self._finish()
        taken = np.array(actions) if isinstance(actions, np.ndarray) else list(actions)

        def actions_of(rows: list[int]) -> Any:
            return taken[rows] if isinstance(taken, np.ndarray) else [taken[row] for row in rows]

        self._submit("step", actions_of, taken)

    def step_wait(self) -> VecEnvStepReturn:
        """Waits for all workers, and replaces those that are lost."""
        self._finish()
        return self._observation(), self._reward, self._done, self._infos

    def _submit(self, method: str, argument_of: Callable[[list[int]], Any], actions: Any = None) -> None:
        self._columns = empty_columns(self.observation_space, self.num_envs)
        self._reward, self._done = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, np.bool_)
        self._infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]

        def accept(rows: list[int], reply: Reply) -> None:
            self._accept(rows, reply, actions)

        self._pending = submit(self._crew, Pending(method, argument_of, accept), range(self.num_envs))

    def _finish(self) -> None:
        """Ends what was sent, if anything; what comes later finds the environments after it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            collect(self._crew, pending)

    def _accept(self, rows: list[int], reply: Reply, actions: Any) -> None:
        together = rows[-1] - rows[0] + 1 == len(rows)
        index: Any = slice(rows[0], rows[-1] + 1) if together else rows
        for key, column in self._columns.items():
            column[index] = reply.observation[key]
        self._reward[index], self._done[index] = reply.reward, reply.done
        infos, begun, checksums = pickle.loads(reply.packed)
        for position, row in enumerate(rows):
            record, self._infos[row] = self._records[row], infos[position]
            if LOST in infos[position]:
                infos[position]["terminal_observation"] = self._last_observation(row)
            if position in begun:
                start, self.reset_infos[row] = begun[position]
                record.begin(start)
            else:
                record.add(actions[row])
            record.checksum = checksums[position]
            self._last[row] = (reply.observation, position)

    def _last_observation(self, row: int) -> Any:
        columns, position = self._last[row]
        copies = {key: np.array(column[position]) for key, column in columns.items()}
        return dict_to_obs(self.observation_space, copies)

    def _observation(self) -> VecEnvObs:
        return dict_to_obs(self.observation_space, self._columns)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """An attribute of each environment or of a wrapper around it; a copy."""
        return self._look("get_attr", attr_name, indices)

    def has_attr(self, attr_name: str) -> bool:
        """Whether every environment has the attribute."""
        return all(self._look("has_attr", attr_name, None))

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Whether each environment has a wrapper of the class."""
        return self._look("env_is_wrapped", wrapper_class, indices)

    def get_images(self) -> Sequence[Array | None]:
        """A picture of each environment."""
        return self._look("render", None, None)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of the outermost wrapper of each environment, also in workers to come."""
        self._call(Call("set_attr", attr_name, (value,), {}), indices)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Calls a method of each environment. A new worker repeats the calls of the episode, and the last before it."""
        return self._call(Call("env_method", method_name, method_args, method_kwargs), indices)

    def apply(self, function: Callable[..., Any], arguments: list[Any] | None = None, *, repeated: str) -> list[Any]:
        """Calls a function with each environment, and with its entry of ``arguments``.

        In a new worker it is ``repeated`` as a "setting", which remains; as a "state", with which an episode begins
        anew; or "never".
        """
        self._finish()
        extra = [()] * self.num_envs if arguments is None else [(argument,) for argument in arguments]
        name = f"{function.__module__}.{function.__qualname__}"
        calls = [Call("function", name, args, {}, function, repeated != "state") for args in extra]
        return self._call_each(dict(enumerate(calls)), remembered=repeated != "never")

    def _call(self, call: Call, indices: VecEnvIndices) -> list[Any]:
        chosen = self._rows(indices)
        results = self._call_each(dict.fromkeys(chosen, call))
        by_row = dict(zip(sorted(set(chosen)), results, strict=True))
        return [by_row[row] for row in chosen]

    def _call_each(self, calls: dict[int, Call], *, remembered: bool = True) -> list[Any]:
        """Does a call in each row; the results in the order of the rows."""

        def remember(row: int) -> None:
            if remembered:
                self._records[row].add_call(calls[row])

        return self._ask("call", calls, remember)

    def _look(self, what: str, argument: Any, indices: VecEnvIndices) -> list[Any]:
        chosen = self._rows(indices)
        results = self._ask("look", dict.fromkeys(chosen, (what, argument)), lambda row: None)
        by_row = dict(zip(sorted(set(chosen)), results, strict=True))
        return [by_row[row] for row in chosen]

    def _ask(self, method: str, entries: dict[int, Any], remember: Callable[[int], None]) -> list[Any]:
        self._finish()
        found: dict[int, Any] = {}

        def accept(rows: list[int], answer: bytes) -> None:
            found.update(zip(rows, pickle.loads(answer), strict=True))
            for row in rows:
                remember(row)

        pending = Pending(method, lambda rows: packed_with_code([entries[row] for row in rows]), accept)
        collect(self._crew, submit(self._crew, pending, entries))
        return [found[row] for row in sorted(found)]

    def _rows(self, indices: VecEnvIndices) -> list[int]:
        return [range(self.num_envs)[index] for index in self._get_indices(indices)]

    def close(self) -> None:
        """Ends all workers."""
        self._pending = None
        self._crew.close()
