"""The interface of every engine: acting while a rollout is collected, and the epochs of an update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sb3_ppo_ext.rollout.actors import Actor
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Runner, Update

MakeActor = Callable[[Run], Actor]
MakeRunner = Callable[[Run, Rollout, Update], Runner]


class Engine(Protocol):
    """One way of running a model: eager, compiled on a CPU, or recorded on a GPU.

    Its methods raise ``CompileError`` with the reason for a model that it cannot run.
    """

    def prepare(self, run: Run, actor: MakeActor, runner: MakeRunner) -> None:
        """Compiles acting and the update at the same time before a rollout, where both can be known by then.

        ``actor`` and ``runner`` are those of this engine, or of the eager one for what cannot be compiled.
        """
        ...

    def actor(self, run: Run) -> Actor:
        """An actor for the next rollout, when that begins."""
        ...

    def runner(self, run: Run, rollout: Rollout, update: Update) -> Runner:
        """A runner for the epochs of an update."""
        ...
