"""One order of prompts, and one count of groups, for the environments of several processes."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from sb3_ppo_ext.distributed.likeness import require_alike
from sb3_ppo_ext.distributed.processes import Processes
from sb3_ppo_ext.distributed.shards import Shards


def share_order(env: VecEnv | None, shards: Shards, processes: Processes) -> None:
    """Gives all processes the order of rank 0, and each the place of its environments in it.

    Environments with an order of their own each (``PromptEnv``, or a user's) have nothing to share.
    """
    if env is None or processes.count == 1:
        return
    order: dict[str, Any] = env.env_method("order_state", indices=0)[0] if env.has_attr("order_state") else {}
    require_alike(processes, {"all prompts, which every process passes in one order": order.get("prompts", "none")})
    orders = processes.objects(order)
    if order:
        # A process that was stopped within a rollout may have begun more groups; no number is to come again.
        n_groups = max(other["n_groups"] for other in orders)
        place = shards.first_of(env.num_envs), shards.of_all(env.num_envs)
        env.env_method("take_share", *place, {**orders[0], "n_groups": n_groups})
