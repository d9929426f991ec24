"""rl_zoo3's experiment with PPOX's settings file and knobs; other algorithms run as in rl_zoo3."""

from __future__ import annotations

import argparse
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pprint import pformat
from typing import Any

import optuna
import rl_zoo3.exp_manager
import yaml

from sb3_ppo_ext.distributed.group import join_processes
from sb3_ppo_ext.distributed.processes import ALONE, together
from sb3_ppo_ext.knobs.parsing import parse_knob
from sb3_ppo_ext.knobs.table import KNOBS
from sb3_ppo_ext_zoo import recipes, resume
from sb3_ppo_ext_zoo.language_search import search_for
from sb3_ppo_ext_zoo.processes import OfProcesses, Share, numbered_from, share_of
from sb3_ppo_ext_zoo.registration import NAME
from sb3_ppo_ext_zoo.resume import NamedRun
from sb3_ppo_ext_zoo.staggered_start import staggering, take_staggered_start
from sb3_ppo_ext_zoo.trials import require_whole_name, trial_number
from sb3_ppo_ext_zoo.vector_environments import Environments, VectorEnvironment, parse_vec_env

SETTINGS = Path(__file__).with_name("ppox.yml")
ZOO_SETTINGS = Path(rl_zoo3.exp_manager.__file__).with_name("hyperparams") / "ppo.yml"

# Settings that are numbers. YAML 1.1 reads 1e5 as text (a number is written 1.0e+5).
COUNTS = frozenset({"n_timesteps", "n_envs", "n_steps", "batch_size", "n_epochs"})
RATES = frozenset({"gamma", "gae_lambda", "max_grad_norm", "target_kl"})


class Experiment(OfProcesses):
    """The experiment of rl_zoo3's training; ``ppox.yml`` is its default, and YAML may have every form of a knob."""

    custom_hyperparams: dict[str, Any] | None
    trial_id: int | None
    vec_env: VectorEnvironment | None = None
    shards: int | None = None
    staggered_start = False
    run: NamedRun | None = None  # set on the class while ``ppox train --run`` works
    recipe: str | None = None  # and while ``ppox train --recipe`` does

    def __init__(
        self, args: argparse.Namespace, algo: str, env_id: str, *rest: Any, config: str | None = None, **options: Any
    ) -> None:
        if algo == NAME and self.recipe is not None:
            config = str(recipes.EMPTY)
        elif algo == NAME and not config:
            config = str(default_settings(env_id, self.is_atari(env_id)))
        super().__init__(args, algo, env_id, *rest, config=config, **options)
        self._creating = threading.Lock()
        self.processes = join_processes() if algo == NAME else ALONE
        with together(self.processes, ValueError):
            if self.run is not None and self.processes.rank == 0:
                self._name_folder(args, self.run)
            if algo == NAME:
                self._require_effect()
        self._agree(args)

    def _name_folder(self, args: argparse.Namespace, run: NamedRun) -> None:
        """The folder has the run's name, and a run that has begun goes on with its seed."""
        self.save_path = str(Path(self.log_path, run.name))
        self.params_path = str(Path(self.save_path, self.env_name))
        self.seed = run.seed(Path(self.save_path), args.seed)
        args.seed = self.seed
        self.continue_training = run.is_begun(Path(self.save_path))

    def _require_effect(self) -> None:
        """``ValueError`` for arguments that rl_zoo3 ignores; it would train the agent instead of searching."""
        if self.optimize_hyperparameters and self.trained_agent:
            raise ValueError(
                f"trained_agent={self.trained_agent!r}: a search starts every trial from new parameters; leave "
                "-i/--trained-agent out, or continue the agent's training with `ppox train`"
            )
        timesteps = getattr(self.args, "n_timesteps", -1)
        if timesteps != -1 and timesteps <= 0:
            raise ValueError(
                f"n_timesteps={timesteps}: a positive number is needed, or -1 for the one in the settings file"
            )

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """rl_zoo3's settings, with those of a study's trial; the best trial where the study is named alone.

        rl_zoo3 ignores trial 0, whose number is false, and a trial that is named in part.
        """
        if self._uses_trial():
            trial = self.load_trial(self.storage, self.study_name, self.trial_id)
            self.custom_hyperparams = {**trial, **(self.custom_hyperparams or {})}
            self.trial_id = None  # it is loaded
        fixed = {"policy", "policy_kwargs"} & (self.custom_hyperparams or {}).keys()
        if fixed and self.continue_training and self.run is None:
            warnings.warn(f"{', '.join(sorted(fixed))}: of no effect, the trained agent keeps its policy", stacklevel=2)
        if self.algo == NAME and self.recipe is not None:
            self.custom_hyperparams = {"recipe": self.recipe, **(self.custom_hyperparams or {})}
        read: tuple[dict[str, Any], dict[str, Any]] = super().read_hyperparameters()
        if self.algo == NAME and "recipe" in read[0]:
            whole = recipes.expanded(read[0], self.env_name.gym_id)
            print(f"With the recipe {read[0]['recipe']!r}:\n{pformat(whole)}")
            read = whole, OrderedDict(sorted(whole.items()))  # rl_zoo3's type of what it saves
        with together(self.processes, ValueError):
            if self.run is not None and self.processes.rank == 0:
                self.run.require_same(Path(self.save_path), {**vars(self.args), **read[1]}, self.seed)
        return read

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: Any) -> Any:
        if self.run is None:
            return super()._load_pretrained_agent(hyperparams, env)
        return resume.resumed(Path(self.save_path), env, self.n_timesteps, self.device, self.verbose)

    def learn(self, model: Any) -> None:
        """As rl_zoo3's; a run with a name is saved while it trains."""
        if self.run is None:
            super().learn(model)
        else:
            checkpoints = self.run.checkpoints(Path(self.save_path))
            resume.learn(model, self.n_timesteps, self.callbacks, self.log_interval, checkpoints)

    def _uses_trial(self) -> bool:
        if self.algo != NAME:
            return bool(self.trial_id == 0 and self.storage and self.study_name)
        return require_whole_name(
            study_name=self.study_name,
            storage=self.storage,
            trial_id=self.trial_id,
            searching=self.optimize_hyperparameters,
        )

    def load_trial(
        self, storage: str, study_name: str, trial_id: int | None = None, convert: bool = True
    ) -> dict[str, Any]:
        """rl_zoo3's settings of a trial; a missing trial is a ``ValueError`` with the existing ones."""
        if self.algo == NAME:
            trial_id = trial_number(storage, study_name, trial_id)
            print(f"Settings of trial {trial_id} of the study {study_name!r}")
        try:
            settings: dict[str, Any] = super().load_trial(storage, study_name, trial_id, convert)
        except KeyError as error:
            raise ValueError(
                f"trial_id={trial_id}: this trial of the study {study_name!r} in storage={storage!r} lacks {error}, so "
                f"it is no finished trial of a search for {self.algo!r}; name another with --trial-id"
            ) from error
        return settings

    def _preprocess_hyperparams(self, hyperparams: dict[str, Any]) -> Any:
        if self.algo == NAME:
            for name in (COUNTS | RATES) & hyperparams.keys():
                hyperparams[name] = _number(name, hyperparams[name])
            if "vec_env" in hyperparams:
                self.vec_env = parse_vec_env(hyperparams.pop("vec_env"))
                self.vec_env.require_nothing_of_monitor(hyperparams.get("monitor_kwargs"))
            self.shards = hyperparams.get("shards")
            self.staggered_start = take_staggered_start(hyperparams, self.vec_env)
        of_evaluation = hyperparams.pop("eval_env_kwargs", None) or {} if self.algo == NAME else {}
        processed = super()._preprocess_hyperparams(hyperparams)
        share_of(self.n_envs, self.shards, self.processes)  # before anything is made
        if self.algo == NAME and not self._eval_env_kwargs_args:
            # rl_zoo3 ignores those of the settings file in evaluations.
            self.eval_env_kwargs = {**self.env_kwargs, **of_evaluation}
        return processed

    def objective(self, trial: optuna.Trial) -> float:
        """rl_zoo3's trial; that of a language model has a search space of its own."""
        with search_for(self._hyperparams.get("policy")):
            result: float = super().objective(trial)
        return result

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        """rl_zoo3's environments in the VecEnv that ``vec_env`` names; of a training those of this process."""
        share = Share(n_envs, 0) if eval_env else share_of(n_envs, self.shards, self.processes)
        staggered = staggering(self, self.staggered_start and not eval_env)
        with self._creating, numbered_from(share.first), staggered:
            if self.vec_env is not None:
                environments = Environments(
                    env_id=self.env_name.gym_id,
                    env_kwargs=self.eval_env_kwargs if eval_env else self.env_kwargs,
                    wrapper=self.env_wrapper,
                    seed=self.seed,
                    log_folder=None if eval_env or no_log else self.save_path,
                    evaluation=eval_env,
                    first=share.first,
                )
                # rl_zoo3 reads the class from self, and the trials of `--n-jobs 2` are threads.
                self.vec_env_class = self.vec_env.maker(environments)
            return super().create_envs(share.n_envs, eval_env, no_log)

    def _preprocess_schedules(self, hyperparams: dict[str, Any]) -> dict[str, Any]:
        """Checks the knobs and leaves their text to PPOX: all trials of a search would share a controller made here."""
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


@contextmanager
def experiments_of(run: NamedRun | None, recipe: str | None) -> Iterator[None]:
    """Until the end of the block experiments are the ``run``, where one is named, with settings of the ``recipe``."""
    Experiment.run, Experiment.recipe = run, recipe
    try:
        yield
    finally:
        Experiment.run = Experiment.recipe = None


def install() -> None:
    """Puts ``Experiment`` in the place of rl_zoo3's class, also in a training script that is already imported."""
    rl_zoo3.exp_manager.ExperimentManager = Experiment
    train = sys.modules.get("rl_zoo3.train")
    if train is not None:
        vars(train)["ExperimentManager"] = Experiment
