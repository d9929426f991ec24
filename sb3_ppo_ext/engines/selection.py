"""The choice of the engine that runs a model, and the line that states it.

``compile="auto"`` decides by the planned work alone, never by a clock or by what happens to be in a cache: the same
arguments train the same parameters on any day.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_ext.distributed.processes import together
from sb3_ppo_ext.engines.cpu.threads import available_threads, computing_with, is_large, threads_for
from sb3_ppo_ext.engines.engine import Engine
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.family import Family
from sb3_ppo_ext.host.glibc import take_large_blocks_from_heap
from sb3_ppo_ext.policies.adapter import unvalidated_distributions, unwrapped
from sb3_ppo_ext.process_wide import ProcessWide
from sb3_ppo_ext.rollout.actors import Actor
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.rollout.sharded_actor import ShardedActor
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Runner, Update

REQUIRED_PAYBACK = 2.0  # how many times over the time that compiling takes has to be saved
MEMORY_FROM_HEAP = ProcessWide(lambda: take_large_blocks_from_heap(True), lambda _: take_large_blocks_from_heap(False))
ENDLESS = 2**62  # timesteps; learn(float("inf")) plans as many


class CompileWarning(UserWarning):
    """Something that was to be compiled by ``compile="auto"`` could not be."""


class EngineChoice:
    """The choice for one model. It is not saved: a loaded model decides anew."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self.engine: Engine | None = None  # the compiled one, from the first decision to compile on
        self.compiles: bool | None = None  # None: no learn() has decided yet
        self.pinned: bool | None = None  # what the next decision is to be, where "auto" leaves it open
        self.update_refused = self.actor_refused = False
        self._agreeing = False
        self._announced: bool | None = None
        self._reasons: set[str] = set()

    def decide(self, run: Run, total_timesteps: float) -> None:
        """Decides at the start of ``learn()``, whose last timestep is ``total_timesteps``, and prints the decision."""
        self.compiles, reason = self._decision(run, total_timesteps)
        if self.compiles and self.engine is None:
            self._make_engine(run)
        if run.settings.verbose >= 1 and self._announced is not self.compiles:
            how = "by CUDA graphs" if self.keeps_rollouts_on_device(run) else "compiled"
            print(f"PPOX trains {how if self.compiles else 'eagerly'}: {reason}")
        self._announced = self.compiles

    def _make_engine(self, run: Run) -> None:
        try:
            self.engine = self.family.compiled(run)
        except CompileError as error:
            self.update_refused = self.actor_refused = True
            self._refuse(run, "the model", error)

    def keeps_rollouts_on_device(self, run: Run) -> bool:
        """True where the rollout buffer is to hold tensors on the model's device."""
        return bool(self.compiles) and self.family.on_device(run.device.type)

    def _decision(self, run: Run, total_timesteps: float) -> tuple[bool, str]:
        """True to compile, and the reason for the decision."""
        setting = run.settings.compile
        if setting != "auto":
            return bool(setting), f"compile={setting}"
        if not self.family.compilable:
            return False, f"a {type(unwrapped(run.policy)).__name__} is not compiled"
        if (pinned := self.pinned) is not None:
            self.pinned = None
            return pinned, "so it was decided when the run began"
        epochs, steps = planned_work(run, total_timesteps)
        estimate = self.family.savings(run, epochs, steps)
        if estimate is None:
            return False, f"the device is {run.device}"
        saved, takes = estimate
        compiles = bool(self.compiles) or saved >= REQUIRED_PAYBACK * takes
        if steps * run.of_all(run.n_envs) >= ENDLESS:
            return compiles, "learn() is to end by a callback alone"
        pays = f"saves about {saved:,.0f} s" if compiles else "would not repay the time it takes to compile"
        minibatches = epochs * math.ceil(run.settings.n_steps * run.of_all(run.n_envs) / run.settings.batch_size)
        return compiles, f"{minibatches:,} minibatches are planned, which {pays}"

    def threads(self, run: Run) -> AbstractContextManager[None]:
        """Sets the number of threads torch computes with in ``learn()``.

        With ``compile=False`` they are all there are, as in PPO, for their number changes the last bits.
        """
        if run.device.type != "cpu":
            return nullcontext()
        available = available_threads()
        if run.settings.compile is False:
            return computing_with(available)
        return computing_with(threads_for(run.policy, run.batch_size, available))

    def actor_of(self, run: Run) -> Callable[[ActorCriticPolicy], Actor]:
        """Compiles what can be compiled now; returns the function that makes the actor when the rollout begins."""
        if self.engine is not None and self._should_compile(run) and not (self.update_refused and self.actor_refused):
            try:
                with self._agreed(run):
                    self.engine.prepare(run, self._actor, self.runner)
            except CompileError as error:
                self.update_refused = self.actor_refused = True
                self._refuse(run, "the model", error)
        return lambda _: self._actor(run)

    @contextmanager
    def _agreed(self, run: Run) -> Iterator[None]:
        """Around the compiling of something: where one process cannot, none does.

        What is compiled within another such block is agreed on at the end of that.
        """
        if self._agreeing:
            yield
            return
        self._agreeing = True
        try:
            with together(run.processes, CompileError):
                yield
        finally:
            self._agreeing = False
        refused = run.processes.agree(None, stop=self.update_refused, count=self.actor_refused)
        self.update_refused, self.actor_refused = refused[0], bool(refused[1])

    def _actor(self, run: Run) -> Actor:
        return self._actor_of(run) if run.acting_streams is None else ShardedActor(self._actor_of, run)

    def _actor_of(self, run: Run) -> Actor:
        if self.engine is not None and self._should_compile(run) and not self.actor_refused:
            try:
                with self._agreed(run):
                    return self.engine.actor(run)
            except CompileError as error:
                self.actor_refused = True
                self._refuse(run, "acting", error)
        return self.family.eager.actor(run)

    def runner(self, run: Run, rollout: Rollout, update: Update) -> Runner:
        """A runner for the epochs of an update."""
        if self.engine is not None and self._should_compile(run) and not self.update_refused:
            try:
                with self._agreed(run):
                    return self.engine.runner(run, rollout, update)
            except CompileError as error:
                self.update_refused = True
                self._refuse(run, "the update", error)
        return self.family.eager.runner(run, rollout, update)

    def _should_compile(self, run: Run) -> bool:
        setting = run.settings.compile
        return setting is True or (setting == "auto" and bool(self.compiles))

    def _refuse(self, run: Run, what: str, error: CompileError) -> None:
        if run.settings.compile is True:
            raise ValueError(f'compile=True: {error}; pass compile=False, or "auto" to compile where it can be done')
        if str(error) not in self._reasons and run.processes.rank == 0:
            self._reasons.add(str(error))
            warnings.warn(f'compile="auto": {what} is not compiled: {error}', CompileWarning, stacklevel=2)


@contextmanager
def training(run: Run) -> Iterator[None]:
    """Surrounds an update: distributions are not checked, and a large network's memory is held for its next minibatch.

    Minibatches of images allocate and free the same tens of megabytes again and again. glibc would return them to the
    operating system and get them back page by page: a fifth of an update by 256 images of 84x84x4.
    """
    large = run.device.type == "cpu" and is_large(run.policy, run.batch_size)
    with unvalidated_distributions(), MEMORY_FROM_HEAP if large else nullcontext():
        yield


def planned_work(run: Run, total_timesteps: float) -> tuple[int, int]:
    """Epochs and steps of all environments, past ones included, for short calls of ``learn()`` add up."""
    settings = run.settings
    ahead = min(max(total_timesteps - run.num_timesteps, 0), ENDLESS)
    rollouts = math.ceil(ahead / (settings.n_steps * run.of_all(run.n_envs)))
    done = run.n_updates // max(settings.n_epochs, 1)
    return run.n_updates + rollouts * settings.n_epochs, (done + rollouts) * settings.n_steps
