"""Whether a model compiles, and what it says about it.

``compile="auto"`` decides by the planned work alone, never by a clock or by what happens to be in a cache: the same
arguments train the same parameters on any day. The constants are what was measured with ``MlpPolicy``.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor

from sb3_ppo_ext.engines.cpu.actor import CompiledActor
from sb3_ppo_ext.engines.cpu.libraries import CompileError
from sb3_ppo_ext.engines.cpu.threads import available_threads, computing_with, threads_for
from sb3_ppo_ext.engines.cpu.update import CompiledUpdate, require_compilable
from sb3_ppo_ext.engines.cuda.engine import RECORDERS, DeviceEngine, exchange_buffer
from sb3_ppo_ext.engines.cuda.graph_cache import DeviceGraphs
from sb3_ppo_ext.engines.cuda.update import DeviceUpdate
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.policies.adapter import unvalidated_distributions, unwrapped
from sb3_ppo_ext.policies.family import EagerOnly, SequencePolicy
from sb3_ppo_ext.rollout.actors import Actor, EagerActor
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Update
from sb3_ppo_ext.update.prepare import prepare_update, steered_by_exact_kl

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX


class Costs(NamedTuple):
    """Seconds on one type of device."""

    saved_per_minibatch: float
    saved_per_step: float  # of all environments together
    compile_time: float  # on a machine that has never compiled before; on a CPU of one graph


# What "auto" decides by; on a device that is not here it trains eagerly.
COSTS = {"cpu": Costs(1.2e-3, 0.2e-3, 20.0), "cuda": Costs(3.5e-3, 0.5e-3, 40.0)}  # an AMD EPYC; an H100
WORTH = 2.0  # how many times over the time has to be saved
ENDLESS = 2**62  # timesteps; learn(float("inf")) plans as many


class CompileWarning(UserWarning):
    """``compile="auto"`` wanted to compile and could not."""


class Compilation:
    """Goes with one model and is not saved: a loaded model decides anew."""

    def __init__(self) -> None:
        self.verbose = 0
        self.graphs = Graphs(lambda: showing(self.verbose))
        self.engine: DeviceEngine | None = None  # of a GPU
        self.wanted: bool | None = None  # None: no learn() has said yet
        self.epochs = 0  # over all of the training that is known of
        self.update_refused = self.actor_refused = False
        self._said: bool | None = None
        self._reasons: set[str] = set()

    def plan(self, model: PPOX, total_timesteps: float) -> None:
        """At the start of ``learn()``, whose last timestep is ``total_timesteps``: decides, and says so."""
        self.verbose = model.verbose
        self.epochs, steps = planned_work(model, total_timesteps)
        minibatches = self.epochs * math.ceil(model.n_steps * model.n_envs / model.batch_size)
        self.wanted, reason = self._decision(model, minibatches, steps)
        self._meet_device(model)
        exchange_buffer(model, on_device=self.engine is not None)
        how = "compiled" if self.engine is None else "by CUDA graphs"
        if model.verbose >= 1 and self._said is not self.wanted:
            print(f"PPOX trains {how if self.wanted else 'eagerly'}: {reason}")
        self._said = self.wanted

    def _decision(self, model: PPOX, minibatches: int, steps: int) -> tuple[bool, str]:
        """Whether to compile, and why."""
        policy = unwrapped(model.policy)
        if model.compile != "auto":
            return bool(model.compile), f"compile={model.compile}"
        if model.device.type not in COSTS:
            return False, f"the device is {model.device}"
        if isinstance(policy, EagerOnly):
            return False, f"a {type(policy).__name__} is not compiled"
        saved, takes = self._saved(model, minibatches, steps)
        wanted = bool(self.wanted) or saved >= WORTH * takes
        pays = f"saves about {saved:,.0f} s" if wanted else "would not repay the time it takes to compile"
        if steps * model.n_envs >= ENDLESS:
            return wanted, "learn() is to end by a callback alone"
        return wanted, f"{minibatches:,} minibatches are planned, which {pays}"

    def _saved(self, model: PPOX, minibatches: int, steps: int) -> tuple[float, float]:
        """Seconds that compiling saves, and that it takes."""
        policy = unwrapped(model.policy)
        if isinstance(policy, SequencePolicy):
            return policy.compiling_saves(model, self.epochs, steps)
        costs = COSTS[model.device.type]
        return minibatches * costs.saved_per_minibatch + steps * costs.saved_per_step, costs.compile_time

    def threads(self, model: PPOX) -> AbstractContextManager[None]:
        """The threads torch computes with in ``learn()``; with ``compile=False`` all, as PPO: their number shows in the
        last bits.
        """
        if model.device.type != "cpu":
            return nullcontext()
        available = available_threads()
        if model.compile is False:
            return computing_with(available)
        return computing_with(threads_for(model.policy, model.batch_size, available))

    def actor_of(self, model: PPOX) -> Callable[[ActorCriticPolicy], Actor]:
        """Who acts in the next rollout, to be asked for when that begins."""
        refused = self.update_refused and self.actor_refused
        # Of responses the lengths tell the shape, and those are known after a rollout.
        together = self.engine is None and not isinstance(unwrapped(model.policy), SequencePolicy)
        if self._wants(model) and together and not refused and not self.graphs.known:
            self._compile_together(model)
        return lambda _: self._actor(model)

    def _compile_together(self, model: PPOX) -> None:
        """Acting and update before the first rollout: takes less time than one after the other."""
        try:
            with self.graphs.together(), unvalidated_distributions():
                model.policy.set_training_mode(False)
                self._actor(model)
                model.policy.set_training_mode(True)  # as in train()
                rollout = Rollout(model.rollout_buffer, model.action_space, normalize_advantage=False)  # of zeros
                exact = steered_by_exact_kl(model)
                self.update(model, rollout, prepare_update(model, rollout, with_distribution=exact))
        except CompileError as error:
            self.update_refused = self.actor_refused = True
            self._refuse(model, "the model", error)

    def update(self, model: PPOX, rollout: Rollout, eager: Update) -> Update | CompiledUpdate | DeviceUpdate:
        """What runs the minibatches of ``train()``."""
        if not self._wants(model) or self.update_refused:
            return eager
        policy = unwrapped(model.policy)
        try:
            if isinstance(policy, SequencePolicy):
                return policy.compiled_update(rollout, eager, model.batch_size, self.graphs)
            if self.engine is not None:
                return self.engine.update(model, rollout, eager)
            require_cpu(model)
            require_compilable(model.policy, rollout, model.policy.optimizer)
            # One smaller minibatch an epoch; eager it costs little where there are many others.
            costs = COSTS[model.device.type]
            compile_last = self.epochs * costs.saved_per_minibatch >= WORTH * costs.compile_time
            compiled = CompiledUpdate(eager, self.graphs, model._rates.ratios(), compile_last=compile_last)
            compiled.prepare(rollout, model.batch_size)
        except CompileError as error:
            self.update_refused = True
            self._refuse(model, "the update", error)
            return eager
        return compiled

    def _actor(self, model: PPOX) -> Actor:
        if self._wants(model) and not self.actor_refused:
            try:
                policy = unwrapped(model.policy)
                if isinstance(policy, SequencePolicy):
                    return policy.compiled_actor(self.graphs, model.n_envs)
                if self.engine is not None:
                    return self.engine.actor(model)
                require_cpu(model)
                observation = obs_as_tensor(model._last_obs, model.device)  # type: ignore[arg-type]  # there is one
                return CompiledActor(policy, self.graphs, observation)
            except CompileError as error:
                self.actor_refused = True
                self._refuse(model, "acting", error)
        return EagerActor(model.policy)

    def _meet_device(self, model: PPOX) -> None:
        """Makes what a device with recordings needs, if they are wanted: an engine, or graphs of its own for tokens."""
        recorded = bool(self.wanted) and model.device.type in RECORDERS
        by_token = isinstance(unwrapped(model.policy), SequencePolicy)
        if not recorded or by_token:
            self.engine = None
        elif self.engine is None:
            self.engine = DeviceEngine(model.device.type)
        if recorded and by_token and not isinstance(self.graphs, DeviceGraphs):
            self.graphs = DeviceGraphs(model.device.type, self.graphs.showing)

    def _wants(self, model: PPOX) -> bool:
        return model.compile is True or (model.compile == "auto" and bool(self.wanted))

    def _refuse(self, model: PPOX, what: str, error: CompileError) -> None:
        if model.compile is True:
            raise ValueError(f'compile=True: {error}; pass compile=False, or "auto" to compile where it can be done')
        if str(error) not in self._reasons:
            self._reasons.add(str(error))
            warnings.warn(f'compile="auto": {what} is not compiled: {error}', CompileWarning, stacklevel=2)


def require_cpu(model: PPOX) -> None:
    """``CompileError`` for a device on which nothing is compiled."""
    if model.device.type != "cpu":
        raise CompileError(f"the device is {model.device}; the CPU and CUDA are supported")


def planned_work(model: PPOX, total_timesteps: float) -> tuple[int, int]:
    """Epochs and steps of all environments, those behind the model included: short calls of ``learn()`` add up."""
    ahead = min(max(total_timesteps - model.num_timesteps, 0), ENDLESS)
    rollouts = math.ceil(ahead / (model.n_steps * model.n_envs))
    done = model._n_updates // max(model.n_epochs, 1)
    return model._n_updates + rollouts * model.n_epochs, (done + rollouts) * model.n_steps


@contextmanager
def showing(verbose: int) -> Iterator[None]:
    """Says that it is compiled, and for how long already; on a terminal it leaves no trace there."""
    what, start, done = "Compiling, once on this machine; this takes 20 s or so", time.monotonic(), threading.Event()
    stream = sys.stderr
    if not stream.isatty():
        if verbose >= 1:
            print(f"{what} ...", flush=True)
        yield
        return

    def tick() -> None:
        while not done.wait(0.5):
            print(f"\r{what}: {time.monotonic() - start:.0f} s ", end="", file=stream, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\033[K", end="", file=stream, flush=True)
