"""Acting and the update as compiled libraries on a CPU."""

from __future__ import annotations

from stable_baselines3.common.utils import obs_as_tensor

from sb3_ppo_ext.engines.compile_progress import compile_progress
from sb3_ppo_ext.engines.cpu.actor import CompiledActor
from sb3_ppo_ext.engines.cpu.update import CompiledRunner, require_compilable
from sb3_ppo_ext.engines.engine import MakeActor, MakeRunner
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.policies.adapter import unvalidated_distributions, unwrapped
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update
from sb3_ppo_ext.update.prepare import row_update


class CpuEngine:
    """The libraries of one model."""

    def __init__(self) -> None:
        self.verbose = 0
        self.graphs = Graphs(lambda: compile_progress(self.verbose))

    def prepare(self, run: Run, actor: MakeActor, runner: MakeRunner) -> None:
        """Compiles acting and the update before the first rollout; at the same time that takes less than in turn."""
        if self.graphs.known:
            return
        with self.graphs.compiled_in_parallel(), unvalidated_distributions():
            run.policy.set_training_mode(False)
            actor(run)
            run.policy.set_training_mode(True)  # as in train()
            rollout = Rollout(run.buffer, run.action_space, normalize_advantage=False)  # of zeros
            runner(run, rollout, row_update(run, rollout))

    def actor(self, run: Run) -> CompiledActor:
        """An actor for the next rollout."""
        self.verbose = run.settings.verbose
        observation = obs_as_tensor(run.last_observation, run.device)
        actor = CompiledActor(unwrapped(run.policy), self.graphs, observation)
        if actor.writes_to and run.needs_exact_kl:
            raise CompileError(
                f"acting changes {', '.join(actor.writes_to)}: the exact KL to the distributions it acted by cannot be "
                'computed afterwards (kl_estimator="k3" can)'
            )
        return actor

    def runner(self, run: Run, rollout: Rollout, update: Update) -> CompiledRunner:
        """A runner for the epochs of an update."""
        self.verbose = run.settings.verbose
        require_compilable(run.policy, rollout, update.optimizer)
        return CompiledRunner(run, rollout, update, self.graphs)
