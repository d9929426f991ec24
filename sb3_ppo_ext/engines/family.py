"""Kinds of policies, by what PPOX does differently for them.

The class attribute ``ppox_family`` of a policy class is the path of its ``Family``, "package.module:Class", which is
imported when a model of that class is built. Every other policy is trained row by row.
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

    from sb3_ppo_ext.distributed.shards import Shards
    from sb3_ppo_ext.rollout.minibatches import Rollout
    from sb3_ppo_ext.run import Run
    from sb3_ppo_ext.update.epochs import Update

ROWS = "sb3_ppo_ext.engines.rows:RowFamily"


class Family(Protocol):
    """Collecting, training and running for the policies of one kind; each model has an object of its own."""

    buffer_class: type[RolloutBuffer] | None  # unless the user names another; None: Stable-Baselines3's choice
    compilable: bool
    eager: Engine

    def check(self, arguments: Any) -> None:
        """Raises ``ValueError`` for arguments of PPOX (its attributes) that the policies cannot be trained with.

        Called before the networks are made.
        """
        ...

    def check_shards(self, arguments: Any, shards: Shards) -> None:
        """Raises ``ValueError`` for what cannot be divided into shards, or among the processes; the networks follow."""
        ...

    def place_environments(self, model: Any) -> None:
        """Before the first step or reset: gives the environments their place among those of all processes."""
        ...

    def collecting(self, run: Run, callback: BaseCallback) -> AbstractContextManager[None]:
        """Surrounds the collection of a rollout; one that takes long prints how far it is, if the user asked for it."""
        ...

    def rollout(self, run: Run) -> Rollout:
        """The rollout in ``run.buffer``, ready for several epochs of minibatches."""
        ...

    def update(self, run: Run, rollout: Rollout) -> Update:
        """The settings and objects that stay the same over the minibatches of ``rollout``."""
        ...

    def carried(self, buffer: RolloutBuffer, policy: BasePolicy) -> Any:
        """What buffer and policy hold for the next rollout, as plain values for a model's file; None for nothing."""
        ...

    def take_carried(self, buffer: RolloutBuffer, policy: BasePolicy, carried: Any) -> None:
        """Gives a new buffer and policy what ``carried`` returned."""
        ...

    def compiled(self, run: Run) -> Engine:
        """The engine that runs the model compiled, on the device of ``run``."""
        ...

    def on_device(self, device_type: str) -> bool:
        """True where compiled rollouts are stored as tensors on that type of device."""
        ...

    def savings(self, run: Run, epochs: int, steps: int) -> tuple[float, float] | None:
        """Seconds that compiling saves over so many epochs and steps of all environments, and seconds it takes.

        None for a device on which neither was measured.
        """
        ...

    def records(self, run: Run, rollout: Rollout) -> dict[str, float]:
        """Figures of the rollout itself for the log, under full keys."""
        ...

    def findings(self, run: Run, rollout: Rollout, records: Mapping[str, float]) -> dict[str, str]:
        """Warnings, subject -> text, drawn from the rollout and from the log's records of the update."""
        ...


def family_of(policy_class: type[BasePolicy]) -> Family:
    """The family of a policy class, for one model."""
    module, _, name = getattr(policy_class, "ppox_family", ROWS).partition(":")
    family: Family = getattr(import_module(module), name)()
    return family
