"""How PPOX asks a policy that is trained token by token for what it does differently.

Such a policy brings its own rollout buffer, its own minibatches [B, L] under a mask, and its own update. The language
models in :mod:`sb3_ppo_ext.language` are the ones there are.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_ppo_ext.policies.adapter import unwrapped

if TYPE_CHECKING:
    from sb3_ppo_ext.engines.graph_cache import Graphs
    from sb3_ppo_ext.ppox import PPOX
    from sb3_ppo_ext.rollout.actors import Actor
    from sb3_ppo_ext.rollout.minibatches import Rollout
    from sb3_ppo_ext.update.eager import Update


class EagerOnly:
    """Mixed into a policy whose computation depends on what it is given (lengths, caches): no graph fits all of it."""


class SequencePolicy(ActorCriticPolicy):
    """A policy whose action is a sequence of tokens, each with a log-probability and a value of its own."""

    buffer_class: ClassVar[type[RolloutBuffer]]  # unless the user names another

    @classmethod
    @abstractmethod
    def check_algorithm(cls, model: PPOX) -> None:
        """``ValueError`` for arguments of PPOX that do not go with it; before anything is built."""

    def collecting(self, model: PPOX, callback: BaseCallback) -> AbstractContextManager[None]:
        """Around the collection of a rollout: says how far it is, where that takes long and the user wants to know."""
        return nullcontext()

    @abstractmethod
    def rollout(self, model: PPOX) -> Rollout:
        """What ``model.rollout_buffer`` has collected, ready for several epochs of minibatches."""

    @abstractmethod
    def update(self, model: PPOX, rollout: Rollout) -> Update:
        """What runs those minibatches."""

    @abstractmethod
    def compiling_saves(self, model: PPOX, epochs: int, steps: int) -> tuple[float, float]:
        """How many seconds that many epochs and steps of all environments take less when compiled; and to compile."""

    @abstractmethod
    def compiled_actor(self, graphs: Graphs, n_envs: int) -> Actor:
        """Who acts through graphs; ``CompileError`` where that cannot be done."""

    @abstractmethod
    def compiled_update(self, rollout: Rollout, eager: Update, batch_size: int, graphs: Graphs) -> Update:
        """What runs the minibatches through graphs; ``CompileError`` where that cannot be done."""


def default_buffer(policy_class: type[BasePolicy]) -> type[RolloutBuffer] | None:
    """The buffer a policy brings with it; None leaves the choice to Stable-Baselines3."""
    return policy_class.buffer_class if issubclass(policy_class, SequencePolicy) else None


def reporting(model: PPOX, callback: BaseCallback) -> AbstractContextManager[None]:
    """Around the collection of a rollout by ``model``; nothing where its policy is no ``SequencePolicy``."""
    policy = unwrapped(model.policy)
    return policy.collecting(model, callback) if isinstance(policy, SequencePolicy) else nullcontext()
