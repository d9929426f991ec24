"""PPOX in TorchRL: its objective as a loss module, policies that cross over, schedules and controllers of the loss.

Importing it imports torchrl, which sets the global start method of multiprocessing to "spawn" and switches the argument
checks of ``torch.distributions`` off.
"""

from sb3_ppo_ext.optional_packages import require_packages

require_packages("sb3_ppo_ext_torchrl", '"sb3_ppo_ext[torchrl]"', "torchrl", "tensordict")

from sb3_ppo_ext_torchrl.loop_checkpoints import LoopCheckpoints  # noqa: E402  # after the check, so that its message comes first
from sb3_ppo_ext_torchrl.loss import PPOXLoss  # noqa: E402
from sb3_ppo_ext_torchrl.modules import actor_module, critic_module  # noqa: E402
from sb3_ppo_ext_torchrl.policy import TorchRLPolicy  # noqa: E402
from sb3_ppo_ext_torchrl.scheduling import KnobScheduler, KnobSchedulerHook  # noqa: E402

__all__ = [
    "KnobScheduler",
    "KnobSchedulerHook",
    "LoopCheckpoints",
    "PPOXLoss",
    "TorchRLPolicy",
    "actor_module",
    "critic_module",
]
