"""The progress of a rollout's responses: they may take minutes, in which nothing else is shown."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from torch import Tensor

from sb3_ppo_ext.monitoring.checkpoints import with_children
from sb3_ppo_ext.run import Run

SECONDS = 0.5  # from one report to the next, where it takes the place of the last one
FIRST_LINE, LONGEST_PAUSE = 1.0, 30.0  # seconds; lines stay, so that the pauses between them double


class Report(NamedTuple):
    """The responses that are done, and the tokens so far."""

    done: int
    responses: int
    tokens: int
    speed: float  # in tokens per second

    def __str__(self) -> str:
        return f"{self.done:,} of {self.responses:,} responses, {self.tokens:,} tokens, {self.speed:,.0f} tokens/s"

    def short(self) -> str:
        """The report beside a progress bar."""
        return f"{self.done}/{self.responses} responses, {self.speed:,.0f} tokens/s"


class RolloutProgress:
    """Counts the responses and tokens of one rollout, and gives ``show`` a report when it is time to."""

    def __init__(self, responses: int, show: Callable[[Report], None], *, pause: float, doubling: bool = False) -> None:
        self.responses = responses  # there are to be
        self.show = show
        self.pause, self.doubling = pause, doubling
        self.done = self.tokens = 0  # in the batches that are complete
        self.started = time.perf_counter()
        self.due = self.started + pause

    def after_token(self, mask: Tensor, ended: int) -> None:
        """Counts an unfinished batch: ``mask`` [B, L] of its tokens, and how many of its responses have ended."""
        if time.perf_counter() >= self.due:  # to count is to wait for the device
            self._report(self.done + ended, self.tokens + int(mask.sum()))

    def after_batch(self, mask: Tensor) -> None:
        """Counts a batch of responses that is complete, ``mask`` [B, L]."""
        self.done += len(mask)
        self.tokens += int(mask.sum())
        if time.perf_counter() >= self.due or self.done >= self.responses:
            self._report(self.done, self.tokens)

    def _report(self, done: int, tokens: int) -> None:
        time_now = time.perf_counter()
        self.show(Report(done, self.responses, tokens, tokens / max(time_now - self.started, 1e-9)))
        if self.doubling:
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
        self.due = time_now + self.pause


@contextmanager
def progress_of(run: Run, callback: BaseCallback) -> Iterator[RolloutProgress | None]:
    """Shows reports on the progress bar; with ``verbose=1`` as lines, or on a terminal as a line that vanishes."""
    responses = run.settings.n_steps * run.n_envs
    bars = [child for child in with_children(callback) if isinstance(child, ProgressBarCallback)]
    bar: Any = vars(bars[0]).get("pbar") if bars else None
    terminal = sys.stderr.isatty()
    if bar is not None and (terminal or run.settings.verbose < 1):
        yield RolloutProgress(responses, lambda report: bar.set_description(report.short()), pause=SECONDS)
    elif run.settings.verbose < 1:
        yield None
    elif terminal:
        yield RolloutProgress(responses, lambda report: _over_the_line(f"{report} "), pause=SECONDS)
        _over_the_line("")
    else:
        title = f"Rollout {run.monitor.rollouts + 1}"
        yield RolloutProgress(
            responses, lambda report: print(f"{title}: {report}", flush=True), pause=FIRST_LINE, doubling=True
        )


def _over_the_line(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
