"""Checks that responses can be compared in groups: one ``ValueError`` each, before anything is built or trained."""

from __future__ import annotations

import inspect
from typing import Any

from sb3_ppo_ext.knobs.table import is_on
from sb3_ppo_ext.language.envs.prompt_vec_env import group_ids_of
from sb3_ppo_ext.language.training.groups import GROUP_ADVANTAGES
from sb3_ppo_ext.language.training.shared_prompts import check_shared_prompts


def check_groups(model: Any) -> None:
    """Refuses settings of PPOX, read as its attributes, with which responses cannot be compared in groups."""
    policy, buffer = model.policy_kwargs, model.rollout_buffer_kwargs
    default = inspect.signature(model.policy_class.__init__).parameters.get("value")
    epochs = buffer.get("critic_epochs")
    if epochs is not None and epochs < model.n_epochs:
        raise ValueError(
            f"critic_epochs={epochs!r} with n_epochs={model.n_epochs}: the value function is trained in each of those; "
            "pass at least as many"
        )
    if "value" in policy or default is not None:
        check_baseline(policy.get("value", default and default.default), buffer.get("group_advantage"))
    using = [option for option in ("group_advantage", "dynamic_sampling") if buffer.get(option) is not None]
    using += ["share_prompts"] if buffer.get("share_prompts") else []
    if not using:
        return
    name = f"{using[0]}={buffer[using[0]]!r}"
    if model.env is not None:
        sizes = model.env.get_attr("group_size") if model.env.has_attr("group_size") else []
        if any(size < 2 for size in sizes) or group_ids_of(model.env) is None:
            raise ValueError(
                f"{name}: the environment has no groups; pass PromptVecEnv(..., group_size=n), n > 1, or the same to "
                "conversation_vec_env"
            )
        if buffer.get("dynamic_sampling") == "refill" and not model.env.has_attr("group_ids"):
            raise ValueError(
                'dynamic_sampling="refill": the groups of a step are drawn again, so that an episode is one response; '
                'pass PromptVecEnv(..., group_size=n), or "mask"'
            )
        check_shared_prompts(model)
    if buffer.get("group_advantage") not in GROUP_ADVANTAGES:
        return
    if is_on(model.ref_kl_coef) and buffer.get("ref_kl") == "both":
        raise ValueError(f'ref_kl="both" with {name}: the KL would count twice; pass ref_kl="reward" or "loss"')
    if buffer.get("whiten_rewards"):
        raise ValueError(f'whiten_rewards=True with {name}: the group scales its scores itself; "grpo" and "batch" do')
    for option, off in (("value_lr_ratio", 1), ("value_warmup", 0)):
        if policy.get(option, off) != off:
            raise ValueError(f'{option}={policy[option]!r} with value="none": there is no value function to train')


def check_baseline(value: str, group_advantage: str | None) -> None:
    """``ValueError`` unless a baseline takes the place of a critic just where there is none."""
    names = ", ".join(map(repr, GROUP_ADVANTAGES))
    if value == "none" and group_advantage not in GROUP_ADVANTAGES:
        raise ValueError(
            f'value="none" with group_advantage={group_advantage!r}: without a critic the baseline comes from the '
            f'group; pass rollout_buffer_kwargs={{"group_advantage": ...}}, one of {names}'
        )
    if value != "none" and group_advantage in GROUP_ADVANTAGES:
        raise ValueError(
            f"group_advantage={group_advantage!r} with value={value!r}: its baseline is the group, and values would "
            'be trained for nothing; pass policy_kwargs={"value": "none"}'
        )
