"""What every engine offers: acting while a rollout is collected, and the epochs of an update."""

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

    ``CompileError`` with the reason where it cannot run this one.
    """

    def prepare(self, run: Run, actor: MakeActor, runner: MakeRunner) -> None:
        """Before a rollout: compiles acting and update side by side, where both can be known by then.

        ``actor`` and ``runner`` are this engine's, with what cannot be compiled left to the eager one.
        """
        ...

    def actor(self, run: Run) -> Actor:
        """What acts in the next rollout, to be asked for when that begins."""
        ...

    def runner(self, run: Run, rollout: Rollout, update: Update) -> Runner:
        """What runs the epochs of an update."""
        ...
