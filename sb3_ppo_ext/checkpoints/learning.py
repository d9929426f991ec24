"""The checkpoints of one model: ``learn()`` with them, a signal to stop, and a run that is resumed."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext.checkpoints.callbacks import check_callbacks, warn_of_left_out
from sb3_ppo_ext.checkpoints.environments import prepare_environments
from sb3_ppo_ext.checkpoints.folder import stored
from sb3_ppo_ext.checkpoints.lock import locked
from sb3_ppo_ext.checkpoints.partial_rollout import can_be_saved
from sb3_ppo_ext.checkpoints.reading import CheckpointWarning
from sb3_ppo_ext.checkpoints.resumption import Resumed
from sb3_ppo_ext.checkpoints.settings import Checkpoints, settings_of
from sb3_ppo_ext.checkpoints.signals import StopRequest, outliving
from sb3_ppo_ext.checkpoints.state import LearnCall, restore_state, save_state, shards_of
from sb3_ppo_ext.checkpoints.writing import CheckpointWriter
from sb3_ppo_ext.distributed.likeness import require_alike

OVERDUE = 2.0  # intervals after which a rollout is saved before it is complete


class RunCheckpoints:
    """The checkpoints of one model. Without ``learn(checkpoint=...)`` it does nothing."""

    def __init__(self) -> None:
        self.resumed: Resumed | None = None  # until its run has gone on
        self.writer: CheckpointWriter | None = None  # of the last learn() with checkpoints
        self._writes = False  # whether the learn() that runs has them
        self._stop = StopRequest()
        self._call: LearnCall | None = None
        self._callback: BaseCallback | None = None
        self._rollouts: int | None = None  # that the learn() that runs has trained on; None before the first
        self._skipped = 0  # iterations of the run that the learn() that runs has not made itself
        self._log_interval: int | None = None  # set in a resumed run, which counts its iterations on
        self._pace = Pace()
        self._said: list[str] = []  # of what is not restored exactly

    def arranged(self, model: Any, call: LearnCall, checkpoint: Checkpoints | str | Path | None) -> LearnCall | None:
        """The arguments for Stable-Baselines3's ``learn()``; None for a resumed run that is finished."""
        settings = settings_of(checkpoint)
        require_alike(model._processes, {"checkpoint": str(settings), "resumed": str(self.resumed is not None)})
        self._rollouts, self._skipped, self._log_interval = None, 0, None
        if self.resumed is None:
            self._call = call
            self._writes = settings is not None
            if settings is not None:
                self._write_by(settings)
            return call
        self._call = self.resumed.whole(call)
        self.writer, self._writes = self.resumed.writer(settings), True
        self._log_interval, self._skipped = self._call.log_interval, self.resumed.iteration
        rest = self.resumed.rest(model, self._call)
        if rest is None:
            self.resumed = None
        return rest

    def _write_by(self, settings: Checkpoints) -> None:
        """A further ``learn()`` into the same folder continues its run."""
        if self.writer is None or self.writer.run != settings.run:
            self.writer = CheckpointWriter(settings)
        self.writer.settings = settings

    @contextmanager
    def learning(self, model: Any) -> Iterator[None]:
        """Around ``learn()``: the folder is locked, signals are noticed, and the end is saved."""
        if not self._writes:
            yield
            return
        writer, call = self.writer, self._call
        assert writer is not None and call is not None
        settings = writer.settings
        outliving_workers = outliving(model.env, settings.signals, settings.notice)
        first = model._processes.rank == 0
        lock = locked(writer.run) if first else nullcontext()
        with lock, self._stop.noticed(settings.signals), outliving_workers:
            if first:
                self._check_folder(writer, call)
            writer.begin(model._processes)
            self._warn_of_environments(model, prepare_environments(model.env, shards_of(model)))
            try:
                yield
                self._finish(model)
            finally:
                self._writes, self._callback = False, None

    def _check_folder(self, writer: CheckpointWriter, call: LearnCall) -> None:
        """``ValueError`` where the folder holds another run, or this one at another point."""
        found = stored(writer.run)
        if self.resumed is not None:
            if self.resumed.folder == writer.run and found[:1] != self.resumed.newest:
                raise ValueError(
                    f"{writer.run}: the run has gone on since it was resumed here; resume it again to train further"
                )
        elif found and (writer.last not in found or call.reset_num_timesteps):
            raise ValueError(
                f"{writer.run} holds checkpoints of a run, the last of them {found[0].name}. Go on with it by "
                f"PPOX.resume({str(writer.run)!r}, env), or name another folder for a new run"
            )

    def check_callbacks(self, callback: BaseCallback, *, first: bool) -> None:
        """When ``learn()`` has made one callback of all, before any is called; ``first``: in rank 0, which warns."""
        if self.resumed is not None and self._writes and first:
            check_callbacks(callback, self.resumed.state["callbacks"])
        if self._writes:
            self._callback = callback
            if first:
                warn_of_left_out(callback)

    def iteration_to_log(self, iteration: int) -> int | None:
        """The number in the run of an iteration of the ``learn()`` that runs; None where it is not to be logged."""
        if iteration == 0 or self._log_interval is None:  # 0: a callback logs
            return iteration
        number = iteration + self._skipped
        return None if number % self._log_interval else number

    def before_rollout(self, model: Any) -> int | None:
        """Between two updates. Returns how many steps a resumed rollout has already, or None."""
        if not self._writes:
            return None
        self._rollouts = 0 if self._rollouts is None else self._rollouts + 1
        self._pace.boundary()
        if self.resumed is not None:
            return self._restore(model)
        assert self.writer is not None
        due = self._rollouts > 0 and (self._stop.number is not None or self.writer.due())
        due, signal = model._processes.agree(None, stop=due, count=self._stop.number or 0)
        self._stop.number = signal or None  # that of any process
        if due:
            self._save(model)
        self._leave_if_asked(model)
        return None

    def _restore(self, model: Any) -> int | None:
        resumed, self.resumed = self.resumed, None
        assert resumed is not None and self._callback is not None
        started, lines = restore_state(model, self._callback, resumed.state)
        if lines and model._processes.rank == 0:
            warnings.warn(f"{resumed.folder}: {'; '.join(lines)}", CheckpointWarning, stacklevel=2)
        return started

    def step_hook(self, model: Any) -> Callable[[int], None] | None:
        """The function to call after each stored step of a rollout, or None."""
        # Several processes are not at the same step, and are saved between rollouts.
        saves = self._writes and model._processes.count == 1 and can_be_saved(model)
        return functools.partial(self._after_step, model) if saves else None

    def _after_step(self, model: Any, n_steps: int) -> None:
        assert self.writer is not None
        asked = self._stop.number is not None
        if not asked and not (self.writer.settings.interval and self.writer.due(OVERDUE)):
            return
        if n_steps == model.n_steps:  # the rollout is complete, and its advantages are still to come
            return
        if asked:
            left = self.writer.settings.notice - self._stop.seconds_ago
            if self._pace.seconds_to_boundary(n_steps / model.n_steps) < left:
                return
        self._save(model)
        self._leave_if_asked(model)

    def _save(self, model: Any) -> None:
        assert self.writer is not None
        model._normalization.put_back()  # the checkpoint has plain statistics
        try:
            self.writer.try_to_write(model, self._state(model, exact=True), self._about(model, finished=False))
        finally:
            model._normalization.put()

    def _finish(self, model: Any) -> None:
        """The last checkpoint; that it could not be written is an error."""
        assert self.writer is not None
        if self._callback is None or self._rollouts is None:  # nothing has happened
            return
        complete = bool(getattr(model.rollout_buffer, "full", True))  # else a callback has ended it in a step
        complete = not model._processes.agree(None, stop=not complete)[0]
        self._rollouts += complete
        try:
            self.writer.write(model, self._state(model, exact=complete), self._about(model, finished=True))
        except OSError as error:
            raise OSError(
                f"{self.writer.run}: training has ended and its last checkpoint could not be written ({error}). The "
                "model is as it ended: make room and call model.save(...)"
            ) from error

    def _state(self, model: Any, *, exact: bool) -> dict[str, Any]:
        assert self._call is not None and self._callback is not None and self.writer is not None
        iteration = self._skipped + (self._rollouts or 0)
        settings = self.writer.settings
        state = save_state(model, self._callback, settings, call=self._call, iteration=iteration, exact=exact)
        self._warn_of_environments(model, state["environments"]["lines"] if exact else [])
        return state

    def _warn_of_environments(self, model: Any, lines: list[str]) -> None:
        """Says as soon as it is known what a resumed run will not find as it was."""
        new = [line for line in lines if line not in self._said]
        if new and model._processes.rank == 0:
            self._said += new
            warnings.warn(f"resumed from a checkpoint, {'; '.join(new)}", CheckpointWarning, stacklevel=2)

    def _about(self, model: Any, *, finished: bool) -> dict[str, Any]:
        last = model._total_timesteps
        n_envs = model.n_envs if model._shards is None else model._shards.of_all(model.n_envs)
        shards = {"shards": model.shards, "processes": model._processes.count}
        return {"finished": finished, "last_timestep": last, "n_envs": n_envs, **shards}

    def _leave_if_asked(self, model: Any) -> None:
        if self._stop.number is None:
            return
        assert self.writer is not None
        model._monitor.leaves_pending = True  # the checkpoint has it, and the resumed run writes it
        last = "none yet" if self.writer.last is None else str(self.writer.last)
        if model._processes.rank == 0:
            print(
                f"{self._stop.name}: training ends here (last checkpoint: {last}); PPOX.resume continues it", flush=True
            )
        raise SystemExit(128 + self._stop.number)


class Pace:
    """Measures how long a rollout and its update take."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._usual = 0.0  # seconds from one boundary to the next

    def boundary(self) -> None:
        """A rollout begins."""
        now = time.monotonic()
        if self._began is not None:
            took = now - self._began
            self._usual = took if self._usual == 0 else 0.5 * (self._usual + took)
        self._began = now

    def seconds_to_boundary(self, fraction: float) -> float:
        """The expected seconds to the end of the update, when a ``fraction`` of the rollout is collected."""
        passed = 0.0 if self._began is None else time.monotonic() - self._began
        return max(self._usual, passed / max(fraction, 1e-9)) - passed
