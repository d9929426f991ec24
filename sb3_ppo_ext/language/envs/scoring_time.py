"""How long reward functions take."""

from __future__ import annotations

from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.language.envs.prompt_env import PromptVecEnv


def take_scoring_seconds(env: VecEnv | None) -> float | None:
    """How long the reward functions took since this was last asked; None where the environment does not say."""
    if env is None or not env.has_attr("take_scoring_seconds"):
        return None
    each = env.env_method("take_scoring_seconds")
    return float(each[0] if isinstance(env.unwrapped, PromptVecEnv) else sum(each))  # that one's is of all its rows
