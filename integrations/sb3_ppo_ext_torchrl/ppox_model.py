"""The modules of a PPOX model in TorchRL, and the arguments of its loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensordict.nn import TensorDictModuleBase
from torch import nn

from sb3_ppo_ext.knobs.table import KNOBS, is_on
from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext_torchrl.coefficients import ADDED_COEFFICIENTS
from sb3_ppo_ext_torchrl.modules import actor_module, critic_module

if TYPE_CHECKING:
    from sb3_ppo_ext import PPOX


def modules_of(policy: nn.Module) -> tuple[TensorDictModuleBase, TensorDictModuleBase]:
    """Actor and critic of a policy."""
    return actor_module(policy), critic_module(policy)


def arguments_of(model: PPOX) -> dict[str, Any]:
    """The arguments of ``PPOXLoss`` that make it ``model``'s loss, with the coefficients in force now."""
    knobs = model.knobs.values
    high = knobs.clip_range_high
    return {
        "surrogate": model.surrogate,
        "clip_epsilon": knobs.clip_range if high is None else (knobs.clip_range, high),
        "dual_clip": model.dual_clip,
        **{
            name: getattr(knobs, name) if _is_set(name, model.knobs.knobs[name]) else None
            for name in ADDED_COEFFICIENTS
        },
        "kl_estimator": model.kl_estimator,
        "value_clip": model.value_clip,
        "clip_value": knobs.clip_range_vf,
        "entropy_coeff": knobs.ent_coef,
        "critic_coeff": knobs.vf_coef,
        "loss_critic_type": model.value_error,
        "normalize_advantage": model.normalize_advantage and model.advantage_scope == "minibatch",
        # The modules stay the policy's own, as DDP needs them, and a call is a third cheaper.
        "functional": False,
    }


def _is_set(name: str, knob: object) -> bool:
    return knob is not None if KNOBS[name].optional else is_on(knob)


def value_scale_of(model: PPOX) -> Any:
    """The unit of the value's error: the running std of the return with ``normalize_value``."""
    return unwrapped(model.policy).value_net.std if model.normalize_value else None
