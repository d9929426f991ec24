"""The settings of a PPOX, and the state of its training at a moment: all that the rooms below receive.

PPOX makes a ``Run`` for every rollout and every update. Nothing below :mod:`sb3_ppo_ext.ppox` imports PPOX itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from sb3_ppo_ext.distributed.processes import ALONE, Processes
from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.knobs.knob_set import KnobSet
from sb3_ppo_ext.objective.registry import SURROGATES

if TYPE_CHECKING:
    import numpy as np

EARLY_STOP_FACTOR = 1.5  # of target_kl, as in Stable-Baselines3's PPO


@dataclass(frozen=True)
class Settings:
    """The arguments of PPOX of the same names, those that are no knobs."""

    n_steps: int
    batch_size: int
    n_epochs: int
    max_grad_norm: float
    target_kl: float | None
    normalize_advantage: bool
    advantage_scope: str
    value_lambda: float | None
    surrogate: str
    dual_clip: float | None
    kl_estimator: str
    value_clip: str
    value_error: str
    recompute_advantage: bool
    normalize_value: bool
    compile: bool | str
    verbose: int

    def normalizes_over(self, scope: str) -> bool:
        """True where advantages are normalised over ``scope``, each "minibatch" or the whole "rollout"."""
        return self.normalize_advantage and self.advantage_scope == scope

    @property
    def kl_limit(self) -> float:
        """The sampled KL of a minibatch (nats per action) above which no further step is taken."""
        return math.inf if self.target_kl is None else EARLY_STOP_FACTOR * self.target_kl


class Monitor(Protocol):
    """Checks an update while it runs."""

    rollouts: int  # that have been trained on

    def checks_steps(self) -> bool:
        """True where the gradient's norm is read before every step, which on a GPU waits for the device."""
        ...

    def refuse_step(self, epoch: int, row: list[float], origin: Callable[[], str] | None = None) -> None:
        """Raises ``DivergedError`` for a gradient that is not finite: ``row`` as in ``update.step.COLUMNS``.

        ``origin`` returns more about the cause of the NaN.
        """
        ...

    def after_epoch(self, epoch: int, table: np.ndarray) -> None:
        """Checks the rows of an epoch, where its steps were not checked one by one."""
        ...


@dataclass
class Run:
    """One model while it collects a rollout, or trains on it."""

    settings: Settings
    policy: ActorCriticPolicy
    device: torch.device
    action_space: spaces.Space[Any]
    knobs: KnobSet
    buffer: RolloutBuffer
    env: VecEnv | None
    n_envs: int
    num_timesteps: int
    n_updates: int  # epochs over all updates so far
    last_observation: Any  # after the last step; None before the first
    last_episode_starts: Any  # [N]
    set_learning_rate: Callable[[float], None]
    rate_ratios: list[float]  # of the optimizer's parameter groups to the learning rate
    monitor: Monitor
    seconds: dict[str, float]  # spent on kinds of work since they were last reported, by name
    progress: Any = None  # of the collection of a rollout, where its family reports it
    shards: Shards | None = None  # None: environments and rows have one random stream, Stable-Baselines3's
    processes: Processes = ALONE
    acting_streams: Any = None  # an ``ActingStreams`` during a rollout by shards

    @property
    def batch_size(self) -> int:
        """The rows of this process in a minibatch of ``settings.batch_size`` rows."""
        return self.settings.batch_size if self.shards is None else self.shards.of_own(self.settings.batch_size)

    def of_all(self, number: int) -> int:
        """The rows or environments of all processes where this process has ``number``."""
        return number if self.shards is None else self.shards.of_all(number)

    @property
    def share(self) -> float:
        """The weight of this process's rows among those of all processes."""
        return 1.0 if self.shards is None else self.shards.share

    def average(self, tensor: Tensor) -> Tensor:
        """The mean over the rows of all processes, where ``tensor`` is that over the rows of this process."""
        if self.shards is None:
            return tensor
        mean = tensor * self.share
        self.processes.add(mean)
        return mean

    @property
    def penalized(self) -> bool:
        """True where a penalty on the KL to the policy that collected the rollout is part of the loss."""
        return self.knobs.is_on("kl_coef") or self.splits_kl

    @property
    def splits_kl(self) -> bool:
        """True where the penalty weighs the KL of a Gaussian's mean and of its deviation apart."""
        return self.knobs.knobs["kl_coef_std"] is not None

    @property
    def needs_exact_kl(self) -> bool:
        """True where the loss or a controller needs the exact KL of every minibatch."""
        if SURROGATES[self.settings.surrogate].measures_kl:
            return True
        controlled = any(knob.measures == "kl" for knob in self.knobs.controllers.values())
        return self.settings.kl_estimator == "exact" and (self.penalized or controlled)

    def apply_learning_rate(self) -> None:
        """Brings the learning rate that is in force to the optimizer."""
        self.set_learning_rate(float(self.knobs.values.learning_rate))


def run_of(model: Any, monitor: Monitor, rate_ratios: list[float], seconds: dict[str, float]) -> Run:
    """The run of an algorithm with PPOX's arguments and Stable-Baselines3's attributes, at this moment."""
    return Run(
        settings=Settings(**{field.name: getattr(model, field.name) for field in fields(Settings)}),
        policy=model.policy,
        device=model.device,
        action_space=model.action_space,
        knobs=model.knobs,
        buffer=model.rollout_buffer,
        env=model.env,
        n_envs=model.n_envs,
        num_timesteps=model.num_timesteps,
        n_updates=model._n_updates,
        last_observation=model._last_obs,
        last_episode_starts=model._last_episode_starts,
        set_learning_rate=model._set_learning_rate,
        rate_ratios=rate_ratios,
        monitor=monitor,
        seconds=seconds,
        shards=model._shards,
        processes=model._processes,
        acting_streams=model._acting_streams,
    )
