"""Arguments that do not go with a language model: one ``ValueError`` each, before anything is built or trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.knobs.controllers import Controller
from sb3_ppo_ext.knobs.table import is_on
from sb3_ppo_ext.language.inputs import number_of, whole_number_of
from sb3_ppo_ext.unknown_arguments import named_arguments, unknown_argument

# Options of transformers' generate() that change the distribution sampled from.
CUTTING = (
    *("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "num_beams"),
    *("no_repeat_ngram_size", "min_length", "min_new_tokens", "length_penalty", "logits_processor", "bad_words_ids"),
)


def check_options(
    temperature: Any,
    value_lr_ratio: Any,
    value_warmup: Any,
    *,
    use_sde: bool,
    sampling: dict[str, Any],
    owner: type[ActorCriticPolicy] = ActorCriticPolicy,
) -> tuple[float, float, int]:
    """The first three options of a policy as numbers of Python; ``sampling`` has those that ``owner`` does not take."""
    factors = []
    for name, value in (("temperature", temperature), ("value_lr_ratio", value_lr_ratio)):
        number = number_of(value)
        if number is None or not (math.isfinite(number) and number > 0):
            raise ValueError(f"{name}={value!r}: a number above 0 is needed (predict(deterministic=True) is greedy)")
        factors.append(number)
    rollouts = whole_number_of(value_warmup)
    if rollouts is None or rollouts < 0:
        raise ValueError(f"value_warmup={value_warmup!r}: a number of rollouts, at least 0, is needed")
    if use_sde:
        raise ValueError("use_sde=True: gSDE is for continuous actions; pass False")
    for name, value in sampling.items():
        if name in CUTTING:
            raise ValueError(
                f"{name}={value!r}: it would sample from another distribution than the one that is trained, and the "
                "KL to the reference could turn negative; only temperature shapes the distribution here"
            )
        raise unknown_argument(owner.__name__, name, _arguments_of(owner))
    return factors[0], factors[1], rollouts


def _arguments_of(owner: type[ActorCriticPolicy]) -> list[str]:
    """The arguments of a policy's class and of the classes it passes the rest on to."""
    classes = owner.__mro__[: owner.__mro__.index(ActorCriticPolicy)]
    return named_arguments(*(cls.__init__ for cls in classes if "__init__" in vars(cls)))  # type: ignore[misc]  # of a class


def check_algorithm(model: Any, needed_buffer: type[RolloutBuffer]) -> None:
    """Refuses arguments of PPOX, read as its attributes, that do not go with a language model."""
    name = model.policy_class.__name__
    if model.normalize_value:
        raise ValueError(f"normalize_value=True: {name} has no PopArt head; scale the score, or pass False")
    if model.value_lambda is not None:
        raise ValueError(
            f"value_lambda={model.value_lambda}: the lambdas of tokens are options of {name}'s buffer; pass "
            f'rollout_buffer_kwargs={{"value_lambda": {model.value_lambda}}}'
        )
    buffer = model.rollout_buffer_class
    if buffer is not None and not issubclass(buffer, needed_buffer):
        needed = needed_buffer.__name__
        raise ValueError(f"rollout_buffer_class={buffer.__name__}: {name} needs a {needed}; leave it None")
    if model.env is not None and model.get_vec_normalize_env() is not None:
        raise ValueError(
            "the environment is wrapped in VecNormalize: token ids are names, not numbers, and the reward is to stay "
            "the raw score. Take it off (whiten_rewards=True in rollout_buffer_kwargs scales the tokens' rewards)"
        )
    coefficient = model.ref_kl_coef
    if isinstance(coefficient, Controller) and (coefficient.every != "rollout" or coefficient.measures != "ref_kl"):
        raise ValueError(
            f"ref_kl_coef={coefficient!r}: the KL to the reference is measured once per rollout; "
            'AdaptiveKL(..., every="rollout") is needed'
        )
    if is_on(coefficient) and model.policy_kwargs.get("reference") is False:
        raise ValueError(f"ref_kl_coef={coefficient!r} with reference=False: there is nothing to measure the KL to")


def check_division(model: Any, shards: Shards) -> None:
    """Refuses arguments of PPOX, read as its attributes, that do not go with shards or several processes."""
    if model.rollout_buffer_kwargs.get("dynamic_sampling") == "refill":
        raise ValueError(
            f'dynamic_sampling="refill" with shards={shards.count}: how many responses are drawn depends on all of '
            'them; pass "mask", or shards=None and train in one process'
        )
    sampler = model.policy_kwargs.get("sampler")
    if model._processes.count > 1 and sampler == "auto":
        raise ValueError(
            'sampler="auto": what is fastest is measured, and differs between processes; pass "float32" or "bfloat16"'
        )
    if model._processes.count > 1 and (sampler == "vllm" or (isinstance(sampler, Mapping) and "vllm" in sampler)):
        raise ValueError(
            'sampler="vllm" in several processes: its engine reads the variables of their launcher as its own; train '
            'in one process, or pass "continuous_batching"'
        )
    if model.env is None or not model.env.has_attr("group_size"):
        return
    group_size, in_shard = model.env.get_attr("group_size")[0], model.n_envs // len(shards.own)
    if in_shard % group_size:
        raise ValueError(
            f"group_size={group_size} with shards={shards.count} of {in_shard} environments each: the responses to a "
            f"prompt are of one shard; take a multiple of {group_size * shards.count} environments in all, or fewer "
            "shards"
        )


def optimizer_options(
    optimizer_class: type[torch.optim.Optimizer], options: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The optimizer's arguments as ``ActorCriticPolicy`` completes them: Adam's epsilon is 1e-5 if none are given."""
    if options is None and issubclass(optimizer_class, torch.optim.Adam):
        return {"eps": 1e-5}
    return options
