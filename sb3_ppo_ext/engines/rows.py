"""Policies with one log-probability and one value per action: Stable-Baselines3's own, and those derived from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy

from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.engines.cpu.engine import CpuEngine
from sb3_ppo_ext.engines.cuda.engine import RECORDERS, CudaEngine
from sb3_ppo_ext.engines.engine import Engine, MakeActor, MakeRunner
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.knobs.table import is_on
from sb3_ppo_ext.rollout.actors import Actor, EagerActor
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Runner, Update
from sb3_ppo_ext.update.kl_probe import ActedDistributions, probe_of
from sb3_ppo_ext.update.prepare import collected_rows, popart_head, row_update
from sb3_ppo_ext.update.row_runner import RowRunner


class Costs(NamedTuple):
    """Seconds on one type of device."""

    saved_per_minibatch: float
    saved_per_step: float  # of all environments together
    compile_time: float  # on a machine that has never compiled before; on a CPU of one graph


# What compile="auto" decides by, measured with MlpPolicy on an AMD EPYC and on an H100.
COSTS = {"cpu": Costs(1.2e-3, 0.2e-3, 20.0), "cuda": Costs(3.5e-3, 0.5e-3, 40.0)}


class EagerEngine:
    """The engine of PyTorch's own operations, one by one; ``acted`` records the distributions it acts by."""

    def __init__(self, acted: ActedDistributions) -> None:
        self.acted = acted

    def prepare(self, run: Run, actor: MakeActor, runner: MakeRunner) -> None:
        """Does nothing: there is nothing to compile."""

    def actor(self, run: Run) -> Actor:
        """An actor for the next rollout."""
        actor = EagerActor(run.policy)
        return actor if run.shards is not None else self.acted.recorded(actor)

    def runner(self, run: Run, rollout: Rollout, update: Update) -> Runner:
        """A runner for the epochs of an update."""
        probe = probe_of(run, rollout, update.adapter, update.acted, eager=True)
        return RowRunner(run, rollout, update, probe)


class RowFamily:
    """The ``Family`` of policies that are trained row by row."""

    buffer_class: type[RolloutBuffer] | None = None
    compilable = True

    def __init__(self) -> None:
        self.acted = ActedDistributions()
        self.eager: Engine = EagerEngine(self.acted)

    def check(self, arguments: Any) -> None:
        """Refuses ``ref_kl_coef``, because there is no reference policy."""
        if is_on(arguments.ref_kl_coef):
            raise ValueError(
                f"ref_kl_coef={arguments.ref_kl_coef!r}: {arguments.policy_class.__name__} has no frozen reference "
                "policy; 0 is needed (kl_coef penalises the distance to the previous policy)"
            )

    def check_shards(self, arguments: Any, shards: Shards) -> None:
        """Refuses nothing."""

    def place_environments(self, model: Any) -> None:
        """Does nothing: environments do not depend on each other."""

    def collecting(self, run: Run, callback: BaseCallback) -> AbstractContextManager[None]:
        """Prints nothing: a step takes too little time."""
        return nullcontext()

    def rollout(self, run: Run) -> Rollout:
        """The rollout in ``run.buffer``, ready for several epochs of minibatches."""
        return collected_rows(run)

    def update(self, run: Run, rollout: Rollout) -> Update:
        """The settings and objects of the update; PopArt takes over the rollout's targets here."""
        if (head := popart_head(run)) is not None:
            head.update(rollout.value_target, run.average)
        return row_update(run, rollout, self.acted.take(rollout))

    def carried(self, buffer: RolloutBuffer, policy: BasePolicy) -> None:
        """Nothing is left of a rollout."""

    def take_carried(self, buffer: RolloutBuffer, policy: BasePolicy, carried: None) -> None:
        """Does nothing."""

    def compiled(self, run: Run) -> Engine:
        """The engine that runs the model compiled, on the device of ``run``."""
        if run.device.type in RECORDERS:
            return CudaEngine(run.device.type)
        if run.device.type != "cpu":
            raise CompileError(f"the device is {run.device}; the CPU and CUDA are supported")
        return CpuEngine()

    def on_device(self, device_type: str) -> bool:
        """True where compiled rollouts are stored as tensors on that type of device."""
        return device_type in RECORDERS

    def savings(self, run: Run, epochs: int, steps: int) -> tuple[float, float] | None:
        """Seconds that compiling saves, and seconds it takes, by the ``COSTS`` of the device."""
        costs = COSTS.get(run.device.type)
        if costs is None:
            return None
        minibatches = epochs * math.ceil(run.settings.n_steps * run.of_all(run.n_envs) / run.settings.batch_size)
        return minibatches * costs.saved_per_minibatch + steps * costs.saved_per_step, costs.compile_time

    def records(self, run: Run, rollout: Rollout) -> dict[str, float]:
        """No figures of its own."""
        return {}

    def findings(self, run: Run, rollout: Rollout, records: Mapping[str, float]) -> dict[str, str]:
        """No warnings of its own."""
        return {}


class EagerRowFamily(RowFamily):
    """Policies whose computation depends on lengths in the data or on caches, so that no graph fits all of it."""

    compilable = False

    def check_shards(self, arguments: Any, shards: Shards) -> None:
        """Refuses shards."""
        raise ValueError(
            f"shards={shards.count}: a {arguments.policy_class.__name__} is trained in one process without shards; "
            "start one process, and pass shards=None"
        )
