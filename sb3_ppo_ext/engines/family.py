"""Kinds of policies, by what PPOX does differently for them.

A policy class says its kind by a class attribute ``ppox_family``, the path of a ``Family``: "package.module:Class". It
is imported when a model of that class is built. Every other policy is trained row by row.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from stable_baselines3.common.policies import BasePolicy

from sb3_ppo_ext.engines.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.callbacks import BaseCallback

    from sb3_ppo_ext.rollout.minibatches import Rollout
    from sb3_ppo_ext.run import Run
    from sb3_ppo_ext.update.epochs import Update

ROWS = "sb3_ppo_ext.engines.rows:RowFamily"


class Family(Protocol):
    """How the policies of one kind are collected from, trained and run; one object for each model."""

    buffer_class: type[RolloutBuffer] | None  # unless the user names another; None: Stable-Baselines3's choice
    compilable: bool
    eager: Engine

    def check(self, arguments: Any) -> None:
        """``ValueError`` for arguments of PPOX (read as its attributes) that do not go with it; before the networks."""
        ...

    def collecting(self, run: Run, callback: BaseCallback) -> AbstractContextManager[None]:
        """Around the collection of a rollout: says how far it is, where that takes long and the user wants to know."""
        ...

    def rollout(self, run: Run) -> Rollout:
        """What ``run.buffer`` has collected, ready for several epochs of minibatches."""
        ...

    def update(self, run: Run, rollout: Rollout) -> Update:
        """What stays the same over its minibatches."""
        ...

    def compiled(self, run: Run) -> Engine:
        """The engine that runs them compiled, on the device of ``run``."""
        ...

    def on_device(self, device_type: str) -> bool:
        """Whether compiled rollouts are kept on that type of device as tensors."""
        ...

    def savings(self, run: Run, epochs: int, steps: int) -> tuple[float, float] | None:
        """Seconds that compiling saves over so many epochs and steps of all environments, and seconds it takes.

        None for a device on which nothing is known of that.
        """
        ...

    def records(self, run: Run, rollout: Rollout) -> dict[str, float]:
        """What the log says of the rollout itself, under full keys."""
        ...

    def findings(self, run: Run, rollout: Rollout, records: Mapping[str, float]) -> dict[str, str]:
        """What to warn about, given the log's records of the update: subject -> text."""
        ...


def family_of(policy_class: type[BasePolicy]) -> Family:
    """The family of a policy class, for one model."""
    module, _, name = getattr(policy_class, "ppox_family", ROWS).partition(":")
    family: Family = getattr(import_module(module), name)()
    return family
