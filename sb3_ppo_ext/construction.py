"""What PPOX makes around its networks when it is constructed or loaded, and when ``learn()`` begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sb3_ppo_ext import arguments, streams
from sb3_ppo_ext.checkpoints.learning import RunCheckpoints
from sb3_ppo_ext.engines.cuda.engine import exchange_buffer
from sb3_ppo_ext.engines.family import family_of
from sb3_ppo_ext.engines.selection import EngineChoice
from sb3_ppo_ext.knobs.knob_set import knobs_of, parse_knobs
from sb3_ppo_ext.monitoring.run_monitor import RunMonitor
from sb3_ppo_ext.policies.popart import install_popart
from sb3_ppo_ext.rollout.by_hand import prepare_logs
from sb3_ppo_ext.update.optimizers import GroupRates

# Attributes made here that are not saved.
OF_THIS_PROCESS = ("_family", "_monitor", "_engines", "_checkpoints", "_seconds", "last_update")


def set_up(model: Any, inherited: Callable[[], None]) -> None:
    """Checks the arguments, has networks and buffer made by ``inherited``, and makes what works with them.

    ``load()`` comes here after it has put back the saved attributes and its own keyword arguments.
    """
    parse_knobs(model)
    arguments.check_arguments(model)
    model._family = family_of(model.policy_class)
    model._family.check(model)
    arguments.check_compilable(model, model._family.compilable)
    model.rollout_buffer_class = model.rollout_buffer_class or model._family.buffer_class
    with streams.seeding(model):
        inherited()
    prepare_logs(model)
    model._rates = GroupRates(model.policy.optimizer, model.lr_schedule(1.0))  # as the policy has read it
    model.knobs = knobs_of(model)
    model.knobs.load_state_dict(model._controllers)
    model._controllers = {}
    arguments.check_exact_kl(model)
    arguments.check_buffer(model)
    model._monitor = RunMonitor()
    model._engines = EngineChoice(model._family)
    model._checkpoints = RunCheckpoints()
    model._seconds = {}
    model.last_update = None
    if model.normalize_value:
        install_popart(model.policy)


def choose_engine(model: Any) -> None:
    """Decides for ``learn()`` what is compiled, and gives a GPU's engine its rollout buffer.

    It comes before the callbacks are made, which are to find the buffer that will be filled.
    """
    run = model._run()
    model._engines.decide(run, model._total_timesteps)
    if not model._buffer_is_named:
        exchange_buffer(model.rollout_buffer, on_device=model._engines.keeps_rollouts_on_device(run))
