"""The moments of ``PPOX.learn`` at which a run is described, judged and stopped, and what is remembered between them.

What is written, warned about and raised is in monitoring, diagnostics and divergence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_ppo_ext.knobs.table import KNOBS
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
from sb3_ppo_ext.objective.registry import SURROGATES
from sb3_ppo_ext.objective.statistics import OF_TOKENS
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.step import COLUMNS

GRAD_NORM = COLUMNS.index("grad_norm")

# Besides the knobs: what a person compares runs by.
SETTINGS = (
    *("n_steps", "n_envs", "batch_size", "n_epochs", "gamma", "gae_lambda", "max_grad_norm"),
    *("surrogate", "kl_estimator", "value_clip", "value_error", "advantage_scope", "recompute_advantage"),
    *("normalize_advantage", "normalize_value", "use_sde", "policy_class"),
)
NUMBERS_OR_NONE = ("target_kl", "dual_clip", "value_lambda", "seed")
NOT_LOGGED = {"kl_exact", "kl", "kl_std", "stepped", *OF_TOKENS}  # or NaN where they are not measured


@dataclass
class RunMonitor:
    """The monitor of a model. It is not saved: a loaded model may repeat its warnings."""

    diagnostics: Diagnostics = field(default_factory=Diagnostics)
    callback: BaseCallback | None = None  # of the learn() that runs
    described: bool = False  # in this learn()'s logger
    leaves_pending: bool = False  # what is recorded and not written: a checkpoint has it
    rollouts: int = 0
    run: Run | None = None  # the current one
    normalization: Normalization | None = None  # at the beginning of the rollout, if it may have to be saved

    @property
    def current(self) -> Run:
        """The rollout or update that is going on."""
        assert self.run is not None
        return self.run

    def begin(self, callback: BaseCallback) -> None:
        """Begins a ``learn()``, which may have made a new logger."""
        self.callback = callback
        self.described = self.leaves_pending = False

    @contextmanager
    def learning(self, model: OnPolicyAlgorithm, *, logged: bool) -> Iterator[None]:
        """Around ``learn()``: the last update is ``logged``; a run that diverged leaves its last good model."""
        try:
            yield
        except DivergedError as error:
            if (saved := self._save_last_good(model)) is None:
                raise
            raise DivergedError(f"{error} {saved}") from error
        finally:
            # Where learn() fails before it has a logger, that error is the one to show.
            if logged and "_logger" in vars(model) and not self.leaves_pending:
                write_pending(model.logger, model.num_timesteps)

    @contextmanager
    def collecting(self, model: OnPolicyAlgorithm) -> Iterator[None]:
        """Around ``collect_rollouts()``: a distribution that refuses a NaN does not say where the NaN is from."""
        forget_written(model.logger)  # by an earlier learn(), which has left it there to be read
        env = model.get_vec_normalize_env()
        self.normalization = (
            None if env is None or self._last_good_path(model.num_timesteps) is None else Normalization(env)
        )
        try:
            yield
        # RuntimeError: multinomial's, where the distributions do not check (torch.compile switches that off for good).
        except (ValueError, RuntimeError) as error:
            observation: Any = model._last_obs
            knobs = self.current.knobs.numbers()
            iteration = self.rollouts + 1
            explained = explain_policy_failure(error, observation, model.policy, iteration=iteration, knobs=knobs)
            if explained is None:
                raise
            raise explained from error

    def before_update(self) -> None:
        """Checks a rollout before it is trained on."""
        self.rollouts += 1
        run = self.current
        knobs = run.knobs.numbers()
        check_rollout(run.buffer, iteration=self.rollouts, knobs=knobs, last_observation=run.last_observation)

    def checks_steps(self) -> bool:
        """True on a CPU, and on other devices where a last good model is to be saved."""
        return self.current.device.type == "cpu" or self._last_good_path(self.current.num_timesteps) is not None

    def refuse_step(self, epoch: int, row: list[float], origin: Callable[[], str] | None = None) -> None:
        """Raises ``DivergedError`` for ``row``, whose gradient is not finite."""
        values = dict(zip(COLUMNS, row, strict=True))
        logged = {name: value for name, value in values.items() if name not in NOT_LOGGED}
        run = self.current
        try:
            knobs = run.knobs.numbers()
            check_update(logged, iteration=self.rollouts, epoch=epoch, knobs=knobs, buffer=run.buffer)
        except DivergedError as error:
            if origin is None or not (more := origin()):
                raise
            raise DivergedError(f"{error} {more}") from error

    def after_epoch(self, epoch: int, table: np.ndarray) -> None:
        """Refuses the first row with a gradient that is not finite; a loss that is not finite has such a gradient."""
        for row in table:
            if not math.isfinite(row[GRAD_NORM]):
                self.refuse_step(epoch, row.tolist())

    def after_update(self, model: OnPolicyAlgorithm, findings: Mapping[str, str]) -> None:
        """When the update's scalars are recorded and not yet dumped."""
        run, logger = self.current, model.logger
        if run.processes.rank > 0:  # rank 0 has the same records
            return
        self.diagnostics.report(findings)
        values = dict(logger.name_to_value)
        if SURROGATES[run.settings.surrogate].keeps_gradient:  # also of a ratio outside the range
            values.pop("train/clip_fraction", None)
        self.diagnostics.check(values, kl_target=kl_target(run))
        if not self.described:
            write_dashboard(logger)
            texts = {name: as_text(getattr(model, name)) for name in (*KNOBS, *NUMBERS_OR_NONE)}
            write_hyperparameters(logger, {name: getattr(model, name) for name in SETTINGS} | texts)
            self.described = True

    def _last_good_path(self, num_timesteps: int, *kind: str) -> str | None:
        return None if self.callback is None else checkpoint_path(self.callback, num_timesteps, *kind)

    def _save_last_good(self, model: OnPolicyAlgorithm) -> str | None:
        """A sentence about the files that were saved; None where there is nothing good or no folder for it."""
        path = self._last_good_path(model.num_timesteps)
        if path is None or any(first_bad(parameter) for parameter in model.policy.parameters()):
            return None
        model.save(path)
        sentence = f"The model as it was before that is saved as {path}"
        statistics = self._last_good_path(model.num_timesteps, "vecnormalize_", "pkl")
        if statistics is None or self.normalization is None or not self.normalization.is_finite():
            return f"{sentence}."
        self.normalization.save(statistics)
        return f"{sentence}, and the statistics of its VecNormalize as {statistics} (VecNormalize.load takes them)."
