"""The table of cases of language models: each is trained eagerly, by graphs on the CPU, and as on a GPU.

It has the rows of ``tests.cases`` whose settings tokens have too, under the same names, and what tokens alone have.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from sb3_ppo_ext import PPOX, AdaptiveKL, Proportional, Threshold
from sb3_ppo_ext.objective.registry import SURROGATES
from tests.cases import CASES
from tests.language import setups, tiny

Settings = dict[str, Any]

OF_ROWS_ALONE = {"normalize_value", "recompute_advantage", "value_lambda", "use_sde", "policy_kwargs"}
TWO_RATES: Settings = {"policy_kwargs": {"value_lr_ratio": 10.0}}


def for_tokens(name: str) -> Settings:
    """The settings of a case of ``tests.cases``, in minibatches of 16 responses where that has 64 rows."""
    settings = CASES[name][3]
    tokens = {key: value for key, value in settings.items() if key not in OF_ROWS_ALONE}
    if "batch_size" in settings:
        tokens["batch_size"] = settings["batch_size"] // 4
    policy = settings.get("policy_kwargs", {})
    optimizer = {key: value for key, value in policy.items() if key.startswith("optimizer")}
    return {"kl_estimator": "k3", **tokens, "policy_kwargs": optimizer}


def in_buffer(**settings: Any) -> Settings:
    return {"rollout_buffer_kwargs": settings}


def of_policy(**settings: Any) -> Settings:
    return {"policy_kwargs": settings}


def without_critic(group_advantage: str, **settings: Any) -> Settings:
    buffer = {"group_advantage": group_advantage, **settings}
    return {"group_size": 4, "rollout_buffer_kwargs": buffer, "policy_kwargs": {"value": "none"}}


OF_ROWS: dict[str, Settings] = {
    "target_kl, clip_range_vf": for_tokens("target_kl, clip_range_vf"),
    "truncated last minibatch": for_tokens("truncated last minibatch"),
    "last minibatch of one": for_tokens("last minibatch of one"),
    "entropy, no normalisation": for_tokens("entropy, no normalisation"),
    "lambda schedules": for_tokens("lambda schedules"),
    "AdamW": for_tokens("AdamW, separate networks"),
    "clip schedule": for_tokens("clip schedule"),
    "everything": for_tokens("everything"),
    "minibatch controller, two rates": for_tokens("minibatch controller, two rates, gSDE") | TWO_RATES,
    "stopped early, minibatch controller": for_tokens("stopped early, minibatch controller"),
    "controllers of the epoch": for_tokens("controllers of the epoch"),
    "stopped early, two moments": for_tokens("stopped early, two moments") | TWO_RATES,
}

OF_TOKENS: dict[str, Settings] = {
    **{
        f"surrogate {name}": {"surrogate": name, "advantage_scope": "rollout"}
        for name in SURROGATES
        if not SURROGATES[name].measures_kl
    },
    "LoRA, k1": {"kl_coef": 0.1, "kl_estimator": "k1", **of_policy(lora={"r": 2})},
    "LoRA, branch, k2, micro-batches": {
        **{"kl_coef": 0.1, "kl_estimator": "k2", "clip_range_vf": 0.2, "value_clip": "max"},
        **of_policy(lora={"r": 2}, value="branch"),
        **in_buffer(micro_batch_tokens=24),
    },
    "separate critic, Llama, mean by response": {
        **{"ent_coef": 0.01, "clip_range_high": 0.3, "clip_range_vf": 0.2},
        **of_policy(model=partial(tiny.model, "llama"), value="separate"),
        **in_buffer(loss_mean="response"),
    },
    "separate critic, LoRA, mean by length, micro-batches, controllers": {
        **{"target_kl": 5e-3, "learning_rate": AdaptiveKL(1e-3, 1e-3, Threshold(2.0, 1.5), every="minibatch")},
        **{"kl_estimator": "k2", "batch_size": 6},
        **of_policy(lora={"r": 2}, value="separate"),
        **in_buffer(loss_mean="length", micro_batch_tokens=36),
    },
    "reference in the reward": {
        **{"ref_kl_coef": AdaptiveKL(0.1, 0.5, Proportional(100)), "value_error": "l1"},
        **in_buffer(ref_kl_unit="token", whiten_rewards=True, missing_eos_penalty=0.5),
    },
    "reference in the loss": {
        **{"ref_kl_coef": "linear:0.2:0", "value_error": "smooth_l1"},
        **in_buffer(ref_kl="loss", ref_kl_estimator="k3"),
    },
    "reference in both, temperature, warm-up": {
        **{"ref_kl_coef": 0.1, "dual_clip": 2.0},
        **of_policy(temperature=0.7, value_warmup=1),
        **in_buffer(ref_kl="both", ref_kl_estimator="k2", loss_mean="response", micro_batch_tokens=24),
    },
    "critic corrected by the group, dynamic sampling, overlong penalty": {
        **{"advantage_scope": "rollout", "group_size": 2},
        **in_buffer(group_advantage="leave_one_out", dynamic_sampling="mask", overlong_penalty=1.0, overlong_buffer=3),
    },
    "groups, overlong filter, mean by response, micro-batches": {
        **{"group_size": 2, **of_policy(lora={"r": 2}, value="branch")},
        **in_buffer(overlong_filter=True, loss_mean="response", micro_batch_tokens=24),
    },
    "imitation of right responses, mean by response, micro-batches": {
        **of_policy(value="branch"),
        **in_buffer(positive_nll_coef=0.1, success_score=3.0, loss_mean="response", micro_batch_tokens=24),
    },
    "imitation, separate critic": {
        **of_policy(value="separate"),
        **in_buffer(positive_nll_coef=0.1, success_score=3.0),
    },
    "critic epochs, target_kl, micro-batches": {
        **{"target_kl": 5e-3, "clip_range_vf": 0.2, **of_policy(value="separate")},
        **in_buffer(critic_epochs=4, micro_batch_tokens=24),
    },
    "lambdas of VAPO": in_buffer(value_lambda=1.0, lambda_alpha=2.0),
    "RLOO, KL in the reward": {"ref_kl_coef": 0.1, **without_critic("rloo")},
    "GRPO, KL in the loss, GSPO": {
        **{"ref_kl_coef": 0.1, "surrogate": "gspo"},
        **without_critic("grpo", ref_kl="loss", ref_kl_estimator="k3", loss_mean="response"),
    },
    "Dr. GRPO, clip higher, micro-batches": {
        **{"clip_range_high": 0.28, "ent_coef": 0.01},
        **without_critic("dr_grpo", loss_mean="length", micro_batch_tokens=24),
    },
    "shared prompts, LoRA, micro-batches": {
        **{"ref_kl_coef": 0.1, "batch_size": 8},
        **without_critic("rloo", share_prompts=True, micro_batch_tokens=60, ref_kl="loss", ref_kl_estimator="k3"),
        **of_policy(value="none", lora={"r": 2}),
    },
    "scaled by the batch, whitened over the rollout": {"advantage_scope": "rollout", **without_critic("batch")},
}

TOKEN_CASES = {**OF_ROWS, **OF_TOKENS}


def has_another_decoder(name: str) -> bool:
    """Whether the graph that decodes is another than that of "everything": it depends on model, adapter and critic."""
    return bool(TOKEN_CASES[name].get("policy_kwargs", {}).keys() & {"model", "lora", "value", "temperature"})


def model_of(name: str, **more: Any) -> PPOX:
    settings = {**TOKEN_CASES[name], **more}
    torch.manual_seed(0)  # of the parameters that an adapter draws
    kwargs = {"model": tiny.one_block, **settings.pop("policy_kwargs", {})}
    environment = setups.env(group_size=settings.pop("group_size", 1))
    return setups.ppox(environment=environment, policy_kwargs=kwargs, seed=3, **settings)
