"""What is assumed of Stable-Baselines3's insides, read from version 2.9.2: one test of each in ``tests/host``.

A faster path takes the place of a method of Stable-Baselines3 only where a call would run the very function that the
library defines. A subclass, a mixin or a patch, also one of the library's class, is called as Stable-Baselines3 does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage

Functions = Mapping[str, Callable[..., Any]]

# Attributes with a leading underscore that the rooms below ``ppox`` read or write; no release promises to keep them.
PRIVATE_ATTRIBUTES: Mapping[type, tuple[str, ...]] = {
    OnPolicyAlgorithm: (
        "_init_callback",  # makes a callback of a function, a list or None, and gives it the model
        "_last_episode_starts",  # dones [N] of the last step, ones before the first
        "_last_obs",  # observations after the last step; None before the first
        "_n_updates",  # epochs over all updates so far
        "_stats_window_size",  # episodes that ``ep_info_buffer`` holds
        "_update_info_buffer",  # see ``counts_episodes_as_sb3``
    ),
    ActorCriticPolicy: ("_get_action_dist_from_latent",),  # sets and returns ``action_dist``
    RolloutBuffer: ("_get_samples",),  # the rows of a minibatch by index
    DummyVecEnv: ("_save_obs", "_obs_from_buf"),
}

# What a distribution keeps of the last call; the next call writes each before it reads it.
DISTRIBUTION_SCRATCH = frozenset({"distribution", "gaussian_actions", "_latent_sde"})


def functions_of(owner: type, *names: str) -> Functions:
    """The functions that ``owner`` has under ``names`` now."""
    return {name: getattr(owner, name) for name in names}


# The functions as the library defines them: they are looked up when this module is imported.
COLLECTING = functions_of(OnPolicyAlgorithm, "collect_rollouts")
COUNTING = functions_of(OnPolicyAlgorithm, "_update_info_buffer")
ADDING, ADDING_DICTS = (functions_of(buffer, "add") for buffer in (RolloutBuffer, DictRolloutBuffer))
SAMPLING, SAMPLING_DICTS = (
    functions_of(buffer, "get", "_get_samples") for buffer in (RolloutBuffer, DictRolloutBuffer)
)
ESTIMATING = functions_of(RolloutBuffer, "compute_returns_and_advantage")
FORWARD = functions_of(ActorCriticPolicy, "forward", "__call__")
EVALUATING = functions_of(ActorCriticPolicy, "evaluate_actions")
TOWERS = functions_of(MlpExtractor, "forward", "forward_actor", "forward_critic")
STEPPING = functions_of(DummyVecEnv, "step", "step_async", "step_wait", "_save_obs", "_obs_from_buf")
NORMALIZING = functions_of(
    VecNormalize,
    *("step", "step_async", "step_wait", "_update_reward", "_normalize_obs", "normalize_obs", "normalize_reward"),
)
MONITORING = functions_of(VecMonitor, "step", "step_async", "step_wait")
STACKING = functions_of(VecFrameStack, "step", "step_async", "step_wait")
TRANSPOSING = functions_of(
    VecTransposeImage, *("step", "step_async", "step_wait", "transpose_observations", "transpose_image")
)
AVERAGING = functions_of(RunningMeanStd, "update", "update_from_moments")


def defines(kind: type, functions: Functions) -> bool:
    """Whether the class has exactly these functions under their names."""
    return all(getattr(kind, name, None) is function for name, function in functions.items())


def runs(instance: object, functions: Functions) -> bool:
    """Whether a call on ``instance`` runs exactly these functions: neither its class nor itself has another."""
    kind, attributes = type(instance), vars(instance)
    for name, function in functions.items():  # at every step of a rollout: any() takes three times as long
        if name in attributes or getattr(kind, name, None) is not function:
            return False
    return True


def collects_as_sb3(bound_method: Callable[..., bool]) -> bool:
    """Whether a bound ``collect_rollouts`` is that of ``OnPolicyAlgorithm``.

    It acts, steps, calls the callback, counts episodes, adds the value of a last observation where the time limit cut
    an episode, and stores, in this order; its local variables are what callbacks see.
    """
    return getattr(bound_method, "__func__", None) is COLLECTING["collect_rollouts"]


def counts_episodes_as_sb3(algorithm: OnPolicyAlgorithm) -> bool:
    """Whether ``_update_info_buffer`` uses of an info "episode" and, at an episode's end, "is_success" alone."""
    return runs(algorithm, COUNTING)


def adds_as_sb3(buffer: RolloutBuffer) -> bool:
    """Whether ``add`` copies its arguments into the row ``pos`` of the arrays, and moves ``pos`` and ``full``."""
    return runs(buffer, ADDING) or runs(buffer, ADDING_DICTS)


def samples_as_sb3(buffer_class: type[RolloutBuffer]) -> bool:
    """Whether ``get`` hands out the rows in the order of one ``np.random.permutation``, unchanged, as float tensors."""
    return defines(buffer_class, SAMPLING) or defines(buffer_class, SAMPLING_DICTS)


def estimates_as_sb3(buffer: RolloutBuffer) -> bool:
    """Whether ``compute_returns_and_advantage`` is GAE over the arrays [T, N], and ``returns`` adds ``values``."""
    return runs(buffer, ESTIMATING)


def forwards_as_sb3(policy: object) -> bool:
    """Whether a call draws actions once from ``action_dist``, where it leaves the distribution of the observations."""
    return runs(policy, FORWARD)


def evaluates_as_sb3(policy: object) -> bool:
    """Whether ``evaluate_actions`` calls ``extract_features`` and ``mlp_extractor`` once and leaves ``action_dist``."""
    return runs(policy, EVALUATING)


def has_separate_towers(extractor: object) -> bool:
    """Whether the extractor is an ``MlpExtractor`` that applies ``policy_net`` and ``value_net`` and nothing else."""
    return type(extractor) is MlpExtractor and runs(extractor, TOWERS)


def steps_as_sb3(env: object) -> bool:
    """Whether ``env`` is a ``DummyVecEnv`` whose step resets what has ended and returns deep copies of its buffers."""
    return type(env) is DummyVecEnv and runs(env, STEPPING)


def normalizes_as_sb3(env: object, *kinds: type) -> bool:
    """Whether ``env`` is a ``VecNormalize`` that updates ``RunningMeanStd`` statistics, then applies them.

    Statistics may also be of one of the ``kinds``, which are updated by their own ``update``.
    """
    if type(env) is not VecNormalize or not runs(env, NORMALIZING):
        return False
    of_observations = vars(env).get("obs_rms", {})
    statistics = of_observations.values() if isinstance(of_observations, dict) else [of_observations]
    return all(type(rms) in kinds or averages_as_sb3(rms) for rms in (env.ret_rms, *statistics))


def averages_as_sb3(statistics: object) -> bool:
    """Whether ``update`` is ``update_from_moments`` with the mean and the variance over the first axis."""
    return type(statistics) is RunningMeanStd and runs(statistics, AVERAGING)


def monitors_as_sb3(env: object) -> bool:
    """Whether ``env`` is a ``VecMonitor`` that sums rewards and puts "episode" into copies of the last infos."""
    return type(env) is VecMonitor and runs(env, MONITORING)


def stacks_as_sb3(env: object) -> bool:
    """Whether ``env`` is a ``VecFrameStack`` whose step hands the results below to ``stacked_obs.update``."""
    return type(env) is VecFrameStack and runs(env, STACKING)


def transposes_as_sb3(env: object) -> bool:
    """Whether ``env`` is a ``VecTransposeImage`` that transposes images of the results below, last ones included."""
    return type(env) is VecTransposeImage and runs(env, TRANSPOSING)
