"""The moments of ``PPOX.learn`` at which a run is described, judged and stopped, and what is remembered between them.

What is written, warned about and raised is in monitoring, diagnostics and divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from sb3_ppo_ext.knobs.parsing import KNOBS
from sb3_ppo_ext.monitoring.checkpoints import Normalization, checkpoint_path
from sb3_ppo_ext.monitoring.diagnostics import Diagnostics
from sb3_ppo_ext.monitoring.divergence import (
    DivergedError,
    check_rollout,
    check_update,
    explain_policy_failure,
    first_bad,
)
from sb3_ppo_ext.monitoring.tensorboard import (
    as_text,
    forget_written,
    write_dashboard,
    write_hyperparameters,
    write_pending,
)
from sb3_ppo_ext.monitoring.update_log import kl_target
from sb3_ppo_ext.update.eager import NAMES, Measured
from sb3_ppo_ext.update.kl_probe import ActedDistributions

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX

# Besides the knobs: what a person compares runs by.
SETTINGS = (
    *("n_steps", "n_envs", "batch_size", "n_epochs", "gamma", "gae_lambda", "max_grad_norm"),
    *("surrogate", "kl_estimator", "value_clip", "advantage_scope", "recompute_advantage"),
    *("normalize_advantage", "normalize_value", "use_sde", "policy_class"),
)
NUMBERS_OR_NONE = ("target_kl", "dual_clip", "seed")


@dataclass
class Watch:
    """Goes with one model. It is not saved: a loaded model may say again what is wrong with it."""

    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    callback: BaseCallback | None = None  # of the learn() that runs
    described: bool = False  # in this learn()'s logger
    rollouts: int = 0
    acted: ActedDistributions = field(default_factory=ActedDistributions)
    normalization: Normalization | None = None  # at the beginning of the rollout, if it may have to be saved

    def begin(self, callback: BaseCallback) -> None:
        """At the start of ``learn()``, which may have made a new logger."""
        self.callback = callback
        self.described = False

    @contextmanager
    def learning(self, model: PPOX, *, logged: bool) -> Iterator[None]:
        """Around ``learn()``: the last update is ``logged``; a run that diverged leaves its last good model."""
        try:
            yield
        except DivergedError as error:
            if (saved := self._save_last_good(model)) is None:
                raise
            raise DivergedError(f"{error} {saved}") from error
        finally:
            # Where learn() fails before it has a logger, that error is the one to show.
            if logged and "_logger" in vars(model):
                write_pending(model.logger, model.num_timesteps)

    @contextmanager
    def collecting(self, model: PPOX) -> Iterator[None]:
        """Around ``collect_rollouts()``: a distribution that refuses a NaN does not say where the NaN is from."""
        forget_written(model.logger)  # by an earlier learn(), which has left it there to be read
        env = model.get_vec_normalize_env()
        self.normalization = None if env is None or self._last_good_path(model) is None else Normalization(env)
        try:
            yield
        # RuntimeError: multinomial's, where the distributions do not check (torch.compile switches that off for good).
        except (ValueError, RuntimeError) as error:
            given: Any = model._last_obs
            knobs = model.knobs.numbers()
            iteration = self.rollouts + 1
            explained = explain_policy_failure(error, given, model.policy, iteration=iteration, knobs=knobs)
            if explained is None:
                raise
            raise explained from error

    def before_update(self, model: PPOX) -> None:
        """After a rollout, before anything is made of it."""
        self.rollouts += 1
        last: Any = model._last_obs
        knobs = model.knobs.numbers()
        check_rollout(model.rollout_buffer, iteration=self.rollouts, knobs=knobs, last_observation=last)

    def step_check(self, model: PPOX, epoch: int) -> Callable[[Tensor], None]:
        """What to do with the statistics of a minibatch (``NAMES``) between its gradient and its step."""

        # Elsewhere than on a CPU, to look is to wait for the device: done only where a good model is to be saved.
        looks = model.device.type == "cpu" or self._last_good_path(model) is not None

        def check(row: Tensor) -> None:
            # A loss that is not finite has such a gradient.
            if looks and not math.isfinite(row[-1].item()):
                self._complain(model, epoch, row.tolist())

        return check

    def after_epoch(self, model: PPOX, epoch: int, measured: Measured) -> None:
        """Where the steps were not checked one by one. The row that stopped an epoch has no gradient."""
        steps = measured.table[:-1] if measured.stopped else measured.table
        for row in steps:
            if not math.isfinite(row[-1]):
                self._complain(model, epoch, row.tolist())

    def after_update(self, model: PPOX) -> None:
        """When the update's scalars are recorded and not yet dumped."""
        values = dict(model.logger.name_to_value)
        if model.surrogate != "clip":  # elsewhere a ratio outside the range keeps its gradient
            values.pop("train/clip_fraction", None)
        self.diagnostics.check(values, kl_target=kl_target(model))
        if not self.described:
            write_dashboard(model.logger)
            texts = {name: as_text(getattr(model, name)) for name in (*KNOBS, *NUMBERS_OR_NONE)}
            write_hyperparameters(model.logger, {name: getattr(model, name) for name in SETTINGS} | texts)
            self.described = True

    def _complain(self, model: PPOX, epoch: int, row: list[float]) -> None:
        values = dict(zip(NAMES, row, strict=True))
        for name in ("kl_exact", "kl"):  # not in the log; NaN where it is not measured
            del values[name]
        knobs = model.knobs.numbers()
        check_update(values, iteration=self.rollouts, epoch=epoch, knobs=knobs, buffer=model.rollout_buffer)

    def _last_good_path(self, model: PPOX, *kind: str) -> str | None:
        return None if self.callback is None else checkpoint_path(self.callback, model.num_timesteps, *kind)

    def _save_last_good(self, model: PPOX) -> str | None:
        """What has been saved, in words; None where there is nothing good or no place for it."""
        path = self._last_good_path(model)
        if path is None or any(first_bad(parameter) for parameter in model.policy.parameters()):
            return None
        model.save(path)
        said = f"The model as it was before that is saved as {path}"
        statistics = self._last_good_path(model, "vecnormalize_", "pkl")
        if statistics is None or self.normalization is None or not self.normalization.is_finite():
            return f"{said}."
        self.normalization.save(statistics)
        return f"{said}, and the statistics of its VecNormalize as {statistics} (VecNormalize.load takes them)."
