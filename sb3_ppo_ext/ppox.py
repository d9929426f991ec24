"""The algorithm: Stable-Baselines3's PPO until a knob is turned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from typing_extensions import Self

from sb3_ppo_ext import arguments, construction, model_files, rounds, streams
from sb3_ppo_ext.checkpoints.learning import RunCheckpoints
from sb3_ppo_ext.checkpoints.resumption import resume
from sb3_ppo_ext.checkpoints.settings import Checkpoints
from sb3_ppo_ext.checkpoints.state import LearnCall
from sb3_ppo_ext.distributed.processes import Processes, ended_by_all
from sb3_ppo_ext.engines.family import Family
from sb3_ppo_ext.engines.selection import EngineChoice
from sb3_ppo_ext.knobs.knob_set import KnobSet, SavedControllers
from sb3_ppo_ext.knobs.parsing import Knob
from sb3_ppo_ext.knobs.table import ADDED
from sb3_ppo_ext.monitoring.divergence import DivergedError
from sb3_ppo_ext.monitoring.run_monitor import RunMonitor
from sb3_ppo_ext.run import Run, run_of
from sb3_ppo_ext.saving import File, save_atomically
from sb3_ppo_ext.unknown_arguments import named_arguments, refuse_unknown
from sb3_ppo_ext.update.optimizers import rates_of
from sb3_ppo_ext.update.training import Trained
from sb3_ppo_ext.vec_env.accepted import wrapped_environment


class PPOX(PPO):
    """Proximal Policy Optimization with schedules, adaptive KL control and a choice of objectives.

    Takes every argument of :class:`stable_baselines3.PPO`, in the same order and with the same defaults, and the
    keyword arguments below. With those at their defaults it trains the same parameters as PPO, bit for bit.

    ``learning_rate``, ``clip_range``, ``clip_range_vf``, ``ent_coef``, ``vf_coef`` and the first of the arguments below
    are knobs: each takes a number, a schedule of the remaining progress, a controller, or the text or dict form of one
    (``sb3_ppo_ext.knobs.parsing`` lists them).

    :param surrogate: "clip" (Schulman et al. 2017, eq. 7), "spo" (Xie et al. 2025), "none" (the plain ratio, for use
        with ``kl_coef``), "dppo_kl", "dppo_binary_tv", "dppo_binary_kl", "kl_bound", "gspo", "cispo", or your own
    :param dual_clip: c > 1 bounds the loss of a bad action whose ratio explodes (Ye et al. 2020), or None
    :param kl_estimator: "exact" (from the distributions, summed over the action's dimensions), "k1", "k2" or "k3"
        (sampled), for the penalty and for what steers the controllers
    :param value_clip: with ``clip_range_vf``: "sb3" (the clipped value only) or "max" (the larger of both errors)
    :param value_error: of the value loss: "l2" (the mean square), "l1" or "smooth_l1"
    :param advantage_scope: whether ``normalize_advantage`` is over each "minibatch" or the whole "rollout"
    :param value_lambda: lambda of the value targets where it is not ``gae_lambda``, that of the advantages; or None
    :param recompute_advantage: refresh values, advantages and value targets before every epoch after the first
    :param normalize_value: learn the value in running units of the return; ``predict_values`` stays in reward units
    :param shards: parts of the environments with random streams of their own: a run's numbers depend on how many there
        are, and not on how many processes train them. None: one stream, PPO's; several processes are one shard each
    :param vec_normalize_sync: with shards: statistics of a VecNormalize take in the steps of all environments after
        each "rollout", within which they are frozen, or after each "step", as in one process without shards
    :param compile: True: update and acting run as compiled graphs (on CUDA as CUDA graphs over a buffer of tensors),
        several times faster and equal to the eager ones up to rounding, after some 20 s the first time on a machine;
        False: eager; "auto": compiled where the planned work is long enough to repay that, else eager
    """

    clip_range_high: Knob | None
    kl_coef: Knob
    ref_kl_coef: Knob
    divergence_limit: Knob | None
    knobs: KnobSet
    last_update: Trained | None
    _family: Family
    _monitor: RunMonitor
    _engines: EngineChoice
    _processes: Processes
    _checkpoints: RunCheckpoints
    _seconds: dict[str, float]

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: GymEnv | str,
        *args: Any,
        surrogate: str = "clip",
        dual_clip: float | None = None,
        kl_estimator: str = "exact",
        value_clip: str = "sb3",
        value_error: str = "l2",
        advantage_scope: str = "minibatch",
        value_lambda: float | None = None,
        recompute_advantage: bool = False,
        normalize_value: bool = False,
        shards: int | None = None,
        vec_normalize_sync: str = "rollout",
        compile: bool | str = "auto",
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, kwargs, named_arguments(PPO.__init__, PPOX.__init__))
        knobs = {name: kwargs.pop(name, default) for name, default in ADDED.items()}
        kwargs["_init_setup_model"] = False  # own arguments first
        with construction.first_process_speaks(kwargs):
            super().__init__(policy, env, *args, **kwargs)
        for name, knob in knobs.items():
            setattr(self, name, knob)
        self.surrogate, self.dual_clip, self.kl_estimator = surrogate, dual_clip, kl_estimator
        self.value_clip, self.value_error = value_clip, value_error
        self.advantage_scope, self.value_lambda = advantage_scope, value_lambda
        self.recompute_advantage, self.normalize_value = recompute_advantage, normalize_value
        self.shards, self.vec_normalize_sync, self.compile = shards, vec_normalize_sync, compile
        self._buffer_is_named = self.rollout_buffer_class is not None  # by the user
        self._controllers: SavedControllers = {}  # filled by save(), taken back by _setup_model()
        self._shard_seed: int | None = None  # of the shards' streams
        self._random_state: dict[str, Any] | None = None  # of its own streams; None: those of the process
        self._earlier_timesteps = 0  # of learn() calls before the last reset of num_timesteps
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        construction.set_up(self, super()._setup_model)

    _wrap_env = staticmethod(wrapped_environment)  # called by the constructor, set_env() and load()

    @property
    def logger(self) -> Logger:
        """As :attr:`PPO.logger`; one without outputs before ``learn()`` or ``set_logger`` has made another."""
        if "_logger" not in vars(self):
            self._logger = Logger(None, [])
        return self._logger

    @property
    def timesteps_of_all_learns(self) -> int:
        """What a schedule's horizon counts: timesteps over all ``learn()`` calls, resets included."""
        return self._earlier_timesteps + self.num_timesteps

    def _update_current_progress_remaining(self, num_timesteps: int, total_timesteps: int) -> None:
        # The last rollout overshoots; a linear schedule to 0 would turn negative there.
        self._current_progress_remaining = max(1.0 - num_timesteps / total_timesteps, 0.0)

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        self._set_learning_rate(float(self.knobs.values.learning_rate))

    def _set_learning_rate(self, rate: float) -> None:
        rates_of(self).apply(rate)
        self.logger.record("train/learning_rate", rate)

    def _run(self) -> Run:
        """What the rooms below are handed: settings, and the state of the training as it stands now."""
        self._monitor.run = run_of(self, self._monitor, rates_of(self).ratios(), self._seconds)
        return self._monitor.run

    def train(self) -> None:
        """Updates policy and value function from the rollout that was collected last."""
        self.last_update = rounds.update(self)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As :meth:`PPO.collect_rollouts`; a policy that fails on a NaN says where the NaN is."""
        return rounds.collect(self, super().collect_rollouts, env, callback, rollout_buffer, n_rollout_steps)

    def learn(
        self,
        total_timesteps: int | None = None,
        callback: MaybeCallback = None,
        log_interval: int | None = 1,
        tb_log_name: str = "PPOX",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        checkpoint: Checkpoints | str | Path | None = None,
    ) -> Self:
        """As :meth:`PPO.learn`; the last update is logged too.

        :param total_timesteps: needed for all but a model from ``resume``, which finishes its run
        :param checkpoint: where and how often the run is saved, for ``resume`` to go on with it
        """
        asked = LearnCall(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        call = self._checkpoints.arranged(self, asked, checkpoint)
        if call is None:
            return self
        watched = self._monitor.learning(self, logged=call.log_interval is not None)
        saved = self._checkpoints.learning(self)
        ended = ended_by_all(self._processes, DivergedError)
        with ended, streams.learning_from_its_own(self), self._engines.threads(self._run()), saved, watched:
            return super().learn(*call)

    @classmethod
    def resume(cls, folder: str | Path, env: GymEnv | str, callback: MaybeCallback = None, **kwargs: Any) -> Self:
        """The model of a run that ``learn(checkpoint=...)`` saved; its ``learn()`` finishes the run."""
        return resume(cls, folder, env, callback, **kwargs)

    def dump_logs(self, iteration: int = 0) -> None:
        """As :meth:`PPO.dump_logs`; in a resumed run, iterations are those of the run."""
        number = self._checkpoints.iteration_to_log(iteration)
        if number is not None:
            super().dump_logs(number)

    def _setup_learn(self, total_timesteps: int, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        return construction.set_up_learning(self, super()._setup_learn, total_timesteps, *args, **kwargs)

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        return construction.callbacks_of(self, super()._init_callback, callback, progress_bar)

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """As :meth:`PPO.get_parameters`; what controllers have reached stands in the optimizer's state."""
        return model_files.with_controllers(super().get_parameters(), self.knobs)

    def set_parameters(self, load_path_or_dict: Any, exact_match: bool = True, device: Any = "auto") -> None:
        """As :meth:`PPO.set_parameters`; with the optimizer's state come controllers of the same settings."""
        parameters = model_files.read_parameters(load_path_or_dict, device)
        super().set_parameters(parameters, exact_match, device)
        self.knobs.load_state_dict(model_files.controllers_in(parameters))

    def save(self, path: File, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """As :meth:`PPO.save`, but a crash while saving leaves the previous file as it was; rank 0 alone has files."""
        if self._processes.rank > 0 and isinstance(path, (str, Path)):
            return
        with model_files.completed(self):
            save_atomically(path, lambda file: super(PPOX, self).save(file, exclude, include))

    @classmethod
    def load(cls, path: File, *args: Any, **kwargs: Any) -> Self:
        """As :meth:`PPO.load`; a seeded model continues its random streams where ``save`` found them.

        Loaded while another model learns, it does so when it learns itself. Arguments given here take effect; a
        controller given with the settings it was saved with continues.
        """
        around = streams.states_while_learning()
        model = super().load(path, *args, **kwargs)
        construction.continue_streams(model, around)
        return model

    def set_random_seed(self, seed: int | None = None) -> None:
        """As :meth:`PPO.set_random_seed`."""
        if seed is not None:
            self._random_state = None
        super().set_random_seed(seed)
        construction.seed_by_shard(self, seed)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "knobs", "_rates", *construction.OF_THIS_PROCESS]


# For ``help`` and editors: what ``*args`` and ``**kwargs`` are.
PPOX.__init__.__signature__ = arguments.joined_signature(PPO.__init__, PPOX.__init__)  # type: ignore[attr-defined]
PPOX.__doc__ = arguments.with_knobs(PPOX.__doc__)
