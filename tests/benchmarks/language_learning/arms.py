"""The tasks' settings and the arms: plain data, which a record of a run repeats.

All arms of reinforcement learning draw groups of eight and differ in nothing but the critic and the advantage.
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]

# One pass over the data and an adapter on the last of the 30 blocks: the gradient does not go through the others.
REAL: Settings = {
    **{"n_envs": 32, "group_size": 8, "responses": 1024},
    "lora": {
        **{"r": 16, "layers_to_transform": [*range(22, 30)]},
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    },
    "arguments": {"n_steps": 1, "batch_size": 32, "n_epochs": 1, "learning_rate": 1e-3, "gamma": 1.0},
}
SMALL: Settings = {
    **{"n_envs": 64, "group_size": 8, "responses": 2560, "lora": None, "task": {"name": "copying"}},
    "arguments": {
        **{"n_steps": 1, "batch_size": 32, "n_epochs": 2, "gamma": 1.0},
        "learning_rate": "warmup:0.1:linear:5e-4:1e-4",
    },
}
TASKS: dict[str, Settings] = {
    "copying": SMALL,
    "gcd": REAL
    | {
        "task": {
            **{"name": "gcd", "config": {"max_value": 12}, "size": 96, "held_out": 48, "max_new_tokens": 4},
            "examples": "gcd 12 8 = 4\ngcd 9 5 = 1",
        }
    },
    "sums": REAL
    | {
        "task": {
            **{"name": "chain_sum", "size": 140, "held_out": 48, "max_new_tokens": 5},
            "config": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1},
            "examples": "7 + 5 = 12\n4 - 9 = -5",
        }
    },
}

WITHOUT_CRITIC = {"policy": {"value": "none"}}
ARMS: dict[str, Settings] = {
    "PPO": {"policy": {"value": "shared"}},
    # Yue et al. 2025: values pre-trained, their targets with lambda 1, the policy's by length, positive examples.
    "PPO, VAPO's critic": {
        "policy": {"value": "shared"},
        "arguments": {"clip_range_high": 0.28},
        "buffer": {"value_lambda": 1.0, "lambda_alpha": 2.0, "positive_nll_coef": 0.1},
        "value_pretraining": 0.1,  # of the responses
    },
    "RLOO": {**WITHOUT_CRITIC, "buffer": {"group_advantage": "rloo"}},
    "GRPO": {**WITHOUT_CRITIC, "buffer": {"group_advantage": "grpo"}},
    "Dr. GRPO": {**WITHOUT_CRITIC, "buffer": {"group_advantage": "dr_grpo", "loss_mean": "length"}},
}

# No reinforcement learning: what the same number of sequences teaches if they are the right answers.
ARMS["supervised"] = {**ARMS["RLOO"], "supervised": True}


def settings(task: str, arm: str) -> Settings:
    """Everything that a run depends on but its seed."""
    chosen = {**TASKS[task], **ARMS[arm]}
    return {**chosen, "arguments": {**TASKS[task]["arguments"], **ARMS[arm].get("arguments", {})}}
