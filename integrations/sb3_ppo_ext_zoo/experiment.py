"""rl_zoo3's experiment with PPOX's settings file and knobs; for any other algorithm it is rl_zoo3's own."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import rl_zoo3.exp_manager
import yaml

from sb3_ppo_ext.knobs.parsing import parse_knob
from sb3_ppo_ext.knobs.table import KNOBS
from sb3_ppo_ext_zoo.registration import NAME
from sb3_ppo_ext_zoo.vector_environments import Environments, VectorEnvironment, parse_vec_env

SETTINGS = Path(__file__).with_name("ppox.yml")
ZOO_SETTINGS = Path(rl_zoo3.exp_manager.__file__).with_name("hyperparams") / "ppo.yml"

# YAML 1.1 reads 1e5 as text (it wants 1.0e+5); these take a number and nothing else.
COUNTS = frozenset({"n_timesteps", "n_envs", "n_steps", "batch_size", "n_epochs"})
RATES = frozenset({"gamma", "gae_lambda", "max_grad_norm", "target_kl"})


class Experiment(rl_zoo3.exp_manager.ExperimentManager):  # type: ignore[misc]  # rl_zoo3 is followed as Any
    """What rl_zoo3's training runs on, with ``ppox.yml`` as the default and every form of a knob allowed in YAML."""

    custom_hyperparams: dict[str, Any] | None
    vec_env: VectorEnvironment | None = None

    def __init__(
        self, args: argparse.Namespace, algo: str, env_id: str, *rest: Any, config: str | None = None, **options: Any
    ) -> None:
        if algo == NAME and not config:
            config = str(default_settings(env_id, self.is_atari(env_id)))
        super().__init__(args, algo, env_id, *rest, config=config, **options)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """As rl_zoo3, which skips ``--trial-id 0`` because it asks whether the number is true."""
        if self.trial_id == 0 and self.storage and self.study_name:
            trial = self.load_trial(self.storage, self.study_name, 0)
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
        read: tuple[dict[str, Any], dict[str, Any]] = super().read_hyperparameters()
        return read

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        if self.algo == NAME:
            for name in (COUNTS | RATES) & hyperparams.keys():
                hyperparams[name] = _number(name, hyperparams[name])
            if "vec_env" in hyperparams:
                self.vec_env = parse_vec_env(hyperparams.pop("vec_env"))
                self.vec_env.require_nothing_of_monitor(hyperparams.get("monitor_kwargs"))
        return super()._preprocess_hyperparams(hyperparams)

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        """As rl_zoo3, with the VecEnv that ``vec_env`` names."""
        if self.vec_env is not None:
            environments = Environments(
                env_id=self.env_name.gym_id,
                env_kwargs=self.eval_env_kwargs if eval_env else self.env_kwargs,
                wrapper=self.env_wrapper,
                seed=self.seed,
                log_folder=None if eval_env or no_log else self.save_path,
            )
            self.vec_env_class = self.vec_env.maker(environments)
        return super().create_envs(n_envs, eval_env, no_log)

    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        """Checks the knobs and leaves them as they are written.

        PPOX reads them itself. A controller built here would be shared by all trials of a search, memory included.
        """
        if self.algo != NAME:
            settings: dict[str, Any] = super()._preprocess_schedules(hyperparams)
            return settings
        for name in KNOBS.keys() & hyperparams.keys():
            parse_knob(name, hyperparams[name])
        return hyperparams


def default_settings(env_id: str, atari: bool) -> Path:
    """``ppox.yml``, or rl_zoo3's ``ppo.yml`` for an environment that only that one has an entry for."""
    if atari or env_id in _entries(SETTINGS) or env_id not in _entries(ZOO_SETTINGS):
        return SETTINGS
    return ZOO_SETTINGS


def _entries(path: Path) -> dict[str, Any]:
    entries: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return entries


def _number(name: str, value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{name}={value!r}: a number is needed") from None
    if name not in COUNTS:
        return number
    if not number.is_integer():
        raise ValueError(f"{name}={value!r}: a whole number is needed")
    return int(number)


def install() -> None:
    """Has rl_zoo3's training use ``Experiment``, whether or not its script is imported yet."""
    rl_zoo3.exp_manager.ExperimentManager = Experiment
    train = sys.modules.get("rl_zoo3.train")
    if train is not None:
        vars(train)["ExperimentManager"] = Experiment
