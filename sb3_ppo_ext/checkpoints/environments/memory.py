"""Recorders and recordings of the environments of a process, from one checkpoint to the next."""

from __future__ import annotations

from typing import Any, NamedTuple

from sb3_ppo_ext.checkpoints.environments.recorders import EpisodeRecorder, TrialRecorder
from sb3_ppo_ext.checkpoints.environments.recording import Recording
from sb3_ppo_ext.checkpoints.environments.snapshot import LeftOut


class Loss(NamedTuple):
    """An environment that is not restored, and the reason."""

    name: str
    reason: str


class Memory:
    """An attribute of the vector environment, or of the environment of a worker."""

    def __init__(self) -> None:
        self.left_out: LeftOut = {}
        self.trial: Recording | None = None  # when it is complete
        self.tried: list[int] = []  # the environments in it, by index
        self._trial_recorder: TrialRecorder | None = None
        self._episode_recorders: dict[int, EpisodeRecorder] = {}  # by the index of the environment

    def begin_trial(self, indices: list[int], envs: list[Any]) -> None:
        """Records some steps of the environments at ``indices``, unless that has been done."""
        if self.tried == indices or not indices:
            return
        self.trial, self.tried = None, indices
        if self._trial_recorder is not None:
            self._trial_recorder.remove()
        self._trial_recorder = TrialRecorder([envs[index] for index in indices], self._keep)

    def _keep(self, trial: Recording) -> None:
        self.trial, self._trial_recorder = trial, None

    def begin_episodes(self, index: int, env: Any, left_out: LeftOut) -> EpisodeRecorder:
        """Records the episodes of an environment from its next reset on; ``left_out`` counts the layers of it."""
        recorder = self._episode_recorders.get(index)
        if recorder is None or recorder.envs != [env]:
            recorder = self._episode_recorders[index] = EpisodeRecorder(env, left_out)
        return recorder

    def episode(self, index: int) -> Recording | str:
        """The episode that goes on, or why it cannot be repeated."""
        recorder = self._episode_recorders.get(index)
        if recorder is None or recorder.recording is None:
            return "its episode was not recorded from the start"
        if recorder.obstacle is not None:
            return f"{recorder.obstacle}, so that its episode cannot be repeated"
        return recorder.recording

    def go_on(self, left_out: LeftOut, trial: Recording | None, tried: list[int]) -> None:
        """Takes over, after a restore, what was found out and recorded before."""
        self.left_out.update(left_out)
        if self._trial_recorder is not None:  # its steps would be from before the restore and after it
            self._trial_recorder.remove()
            self._trial_recorder = None
        self.trial, self.tried = (None, []) if trial is None else (trial, tried)
