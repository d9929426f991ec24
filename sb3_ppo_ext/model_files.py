"""PPOX's additions to the files and parameters of Stable-Baselines3: controllers and random streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_ppo_ext.knobs.knob_set import KnobSet, SavedControllers
from sb3_ppo_ext.streams import states_to_save

Parameters = dict[str, dict[str, Any]]  # name of an object -> its state dict

OPTIMIZER = "policy.optimizer"
LAST = ("_last_obs", "_last_episode_starts", "_last_original_obs")  # of the environments of one process
CONTROLLERS = "controllers"  # beside "state" and "param_groups", where optimizers do not mind it


@contextmanager
def completed(model: Any) -> Iterator[None]:
    """While it is saved, the model has as attributes what ``_setup_model`` and ``load`` take back from a file."""
    before, model._random_state = model._random_state, states_to_save(model)
    model._controllers = model.knobs.state_dict()
    model._carried = model._family.carried(model.rollout_buffer, model.policy)
    of_this_process = {name: getattr(model, name) for name in ("n_envs", *LAST)}
    if model._processes.count > 1:
        vars(model).update({"n_envs": model._shards.of_all(model.n_envs), **dict.fromkeys(LAST)})
    try:
        yield
    finally:
        model._random_state, model._controllers, model._carried = before, {}, None
        vars(model).update(of_this_process)


def with_controllers(parameters: Parameters, knobs: KnobSet) -> Parameters:
    """The parameters with what controllers have reached, in the optimizer's state: PPO takes them as well."""
    if not knobs.controllers:
        return parameters
    return {**parameters, OPTIMIZER: {**parameters[OPTIMIZER], CONTROLLERS: knobs.state_dict()}}


def controllers_in(parameters: Parameters) -> SavedControllers:
    """The state that ``with_controllers`` added; empty where there is none."""
    found: SavedControllers = parameters.get(OPTIMIZER, {}).get(CONTROLLERS, {})
    return found


def read_parameters(source: Any, device: torch.device | str) -> Any:
    """The ``Parameters`` in a file, or as they are given."""
    return source if isinstance(source, dict) else load_from_zip_file(source, device=device, load_data=False)[1]
