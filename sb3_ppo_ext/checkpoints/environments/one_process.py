"""The environments that live in one process, with the layers around them: saved together, so that they share objects.

The ladder of each environment: its state, where all of its layers can be read; else its current episode, recorded since
the reset and repeated; else new episodes. The first two are compared to the last bit before they count.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from gymnasium.vector import VectorEnv
from stable_baselines3.common.monitor import Monitor

from sb3_ppo_ext.checkpoints.environments.generators import process_generators, set_process_generators
from sb3_ppo_ext.checkpoints.environments.layers import MEMORY, env_layers, name_of
from sb3_ppo_ext.checkpoints.environments.memory import Loss, Memory
from sb3_ppo_ext.checkpoints.environments.recorders import EpisodeRecorder
from sb3_ppo_ext.checkpoints.environments.recording import Recording, play
from sb3_ppo_ext.checkpoints.environments.snapshot import Snapshot, put, require_same_layers, take
from sb3_ppo_ext.vec_env.episodes import EpisodeVecEnv

State = dict[str, Any]

REMEDY = "give the class state_dict() and load_state_dict(state)"
COUNTERS = ("t_start", "total_steps", "episode_returns", "episode_lengths", "episode_times", "_started")


class EnvironmentGroup:
    """``envs`` and the layers ``around`` them, in this process; ``holder`` is the object that carries the memory."""

    def __init__(self, around: list[Any], envs: list[Any], holder: Any) -> None:
        self.envs, self.around = envs, around
        self.layers = [*around]
        self.ranges: list[range] = []  # indices of the layers of each environment
        for env in envs:
            chain = env_layers(env)
            self.ranges.append(range(len(self.layers), len(self.layers) + len(chain)))
            self.layers += chain
        self.memory: Memory = vars(holder).setdefault(MEMORY, Memory())

    def prepare(self) -> list[Loss]:
        """Begins to record what restoring needs; what will not be restored, as far as it shows already."""
        self._take()
        reasons = [self.unread(indices) for indices in self.ranges]
        return [
            Loss(name_of(env), f"{reason}; {REMEDY}")
            for env, reason in zip(self.envs, reasons, strict=True)
            if reason is not None and isinstance(env, VectorEnv)  # which does not restart by reset() alone
        ]

    def _take(self) -> Snapshot:
        """The state of all layers; sees to it that each environment has the recorder it needs."""
        snapshot = take(self.layers, self.memory.left_out, len(self.around))
        readable = [index for index, indices in enumerate(self.ranges) if self.unread(indices) is None]
        self.memory.begin_trial(readable, self.envs)
        for index, env in enumerate(self.envs):
            if index not in readable and not isinstance(env, VectorEnv):
                self._record_episodes(index)
        return snapshot

    def _record_episodes(self, index: int) -> EpisodeRecorder:
        first, left_out = self.ranges[index].start, self.memory.left_out
        of_env = {layer - first: dict(left_out[layer]) for layer in self.ranges[index] if left_out.get(layer)}
        return self.memory.begin_episodes(index, self.envs[index], of_env)

    def unread(self, indices: range) -> str | None:
        """Why the state of these layers is not complete, or None."""
        for index in indices:
            for name, reason in self.memory.left_out.get(index, {}).items():
                return f"{type(self.layers[index]).__name__}.{name} cannot be saved ({reason})"
        return None

    def save(self) -> State:
        """The state of all layers, of the generators, and what was recorded."""
        snapshot = self._take()
        episodes: dict[int, Recording | str] = {}
        for index, indices in enumerate(self.ranges):
            reason = self.unread(indices)
            if reason is not None:
                episode = self.memory.episode(index)
                episodes[index] = f"{reason}, and {episode}; {REMEDY}" if isinstance(episode, str) else episode
        return {
            "snapshot": snapshot,
            "trial": self.memory.trial,
            "tried": self.memory.tried,
            "episodes": episodes,
            "losses": [(name_of(self.envs[at]), reason) for at, reason in episodes.items() if isinstance(reason, str)],
            "generators": process_generators(),
        }

    def restore(self, state: State, *, with_generators: bool) -> list[Loss]:
        """Puts a state back; what it gives are the environments of which new episodes are needed."""
        require_same_layers(self.layers, state["snapshot"])
        self.memory.go_on(state["snapshot"]["left_out"], state["trial"], state["tried"])
        losses = [loss for index in state["episodes"] if (loss := self._repeated(index, state)) is not None]
        if state["trial"] is not None:
            tried = [self.envs[index] for index in state["tried"]]
            reason = play(tried, state["trial"])
            losses += [] if reason is None else [Loss(name_of(tried[0]), reason)]
        if not losses:
            losses = self._put(state, range(len(self.around), len(self.layers)))
        if with_generators:
            set_process_generators(state["generators"])
        return losses

    def _repeated(self, index: int, state: State) -> Loss | None:
        episode = state["episodes"][index]
        reason = episode if isinstance(episode, str) else play([self.envs[index]], episode)
        if reason is not None:
            return Loss(name_of(self.envs[index]), reason)
        # The next checkpoint may come within this episode.
        self._record_episodes(index).recording = {
            **episode,
            "events": [*episode["events"]],
            "digests": [*episode["digests"]],
        }
        return None

    def _put(self, state: State, indices: Iterable[int], names: Collection[str] | None = None) -> list[Loss]:
        try:
            put(self.layers, state["snapshot"], indices, names)
        except Exception as error:  # whatever a user's object raises
            return [Loss(name_of(env), f"{type(error).__name__}: {error}") for env in self.envs or self.around[-1:]]
        return []

    def put_around(self, state: State, count: int) -> list[Loss]:
        """Puts back the first ``count`` of the layers around the environments."""
        return self._put(state, range(count))

    def put_counters(self, state: State) -> None:
        """Lets the counters and clocks of monitors go on where episodes begin anew."""
        monitors = [index for index, layer in enumerate(self.layers) if isinstance(layer, (Monitor, EpisodeVecEnv))]
        self._put(state, monitors, COUNTERS)
