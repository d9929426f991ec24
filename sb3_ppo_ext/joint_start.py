"""Several processes begin to train a model together: what differs between them is an error, or is taken from rank 0."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn

from sb3_ppo_ext.distributed.likeness import copy_from_first, description, require_alike, require_little_drift
from sb3_ppo_ext.distributed.processes import together
from sb3_ppo_ext.rollout.shared_statistics import SharedNormalization, layers_of, plain, statistics_of

# Arguments that may differ: each process has environments of its own, and rank 0 alone prints and logs.
OF_THIS_PROCESS = {"self", "env", "verbose", "tensorboard_log", "device", "_init_setup_model"}

# Of a VecNormalize: what decides which statistics it has, and when it updates them.
OF_LAYER = (*("training", "norm_obs", "norm_reward", "norm_obs_keys", "clip_obs", "clip_reward"), "gamma", "epsilon")


def log_on_first_alone(model: Any) -> None:
    """Gives the other processes a logger without outputs, before ``learn()`` makes files."""
    if model._processes.rank > 0:
        model.verbose = 0
        model.set_logger(Logger(None, []))


def compare_processes(model: Any) -> None:
    """Before the first rollout or update of a ``learn()``: compares the processes, then copies the state of rank 0."""
    if model._processes.count > 1 and not model._alike:
        require_alike(model._processes, _described(model))
        _take_from_first(model)
        model._alike = True


def copy_parameters(model: Any) -> None:
    """Before a rollout: removes what rounding has moved the parameters from those of rank 0; more is an error."""
    processes = model._processes
    if processes.count > 1:
        difference = copy_from_first(moving(model.policy), processes)
        with together(processes):
            require_little_drift(difference)


def moving(policy: nn.Module) -> list[Tensor]:
    """The parameters that are trained, and the buffers.

    Frozen parameters (a language model under an adapter, its reference) come from rank 0 once, and stay.
    """
    return [*(parameter for parameter in policy.parameters() if parameter.requires_grad), *policy.buffers()]


def _take_from_first(model: Any) -> None:
    processes = model._processes
    model._shard_seed = processes.objects(model._shard_seed)[0]
    model._shards = replace(model._shards, seed=model._shard_seed)
    states = model.policy.optimizer.state.values()
    moments = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    copy_from_first([*model.policy.parameters(), *model.policy.buffers(), *moments], processes)


def _described(model: Any) -> dict[str, str]:
    names = [name for name in inspect.signature(type(model).__init__).parameters if name not in OF_THIS_PROCESS]
    arguments = {name: description(getattr(model, name)) for name in names if hasattr(model, name)}
    state = model.policy.optimizer.state
    steps = sorted({float(entry["step"]) for entry in state.values() if "step" in entry})
    return {
        **arguments,
        "algorithm": description(type(model)),
        "policy": description(model.policy_class),
        "parameters": description({name: tuple(p.shape) for name, p in model.policy.named_parameters()}),
        "optimizer": f"{description(type(model.policy.optimizer))} after {steps} steps",
        "observation_space": repr(model.observation_space),
        "action_space": repr(model.action_space),
        "environments in a shard": str(model.n_envs // len(model._shards.own)),
        "num_timesteps": str(model.num_timesteps),
        "last timestep of learn()": str(model._total_timesteps),
        "updates": str(model._n_updates),
        "device": model.device.type,
        "torch": torch.__version__,
    }


def agree_on_normalization(model: Any, *, resets: bool) -> None:
    """Before the first step or reset: compares the ``VecNormalize`` layers, and takes their statistics from rank 0."""
    processes = model._processes
    if processes.count == 1 or model.env is None:
        return
    layers = [{name: getattr(layer, name) for name in OF_LAYER} for layer in layers_of(model.env)]
    require_alike(processes, {"VecNormalize": description(layers), "learn() resets the environments": str(resets)})
    here = list(statistics_of(model.env))
    first = processes.objects([vars(statistics) for _, statistics in here] if processes.rank == 0 else None)[0]
    for (put, _), numbers in zip(here, first, strict=True):
        put(plain(**numbers))


@contextmanager
def normalized_for_all(model: Any) -> Iterator[None]:
    """A reset in the block is one of the environments of all processes for ``VecNormalize``."""
    normalization = SharedNormalization(model)
    try:
        yield
    finally:
        normalization.put_back()
    normalization.merge()
