"""Training by several processes with the numbers of one: shards of environments, and what is reduced over them.

PPOX does all of it itself. A training loop of one's own (``PPOXLoss``, for example) calls ``join_processes`` at its
start, ``normalized_over_processes`` for its advantages and ``reduce_gradients`` after every backward pass.
"""

from sb3_ppo_ext.distributed.group import join_processes
from sb3_ppo_ext.distributed.moments import normalized_over_processes
from sb3_ppo_ext.distributed.processes import ProcessFailedError
from sb3_ppo_ext.distributed.reduction import reduce_gradients

__all__ = ["ProcessFailedError", "join_processes", "normalized_over_processes", "reduce_gradients"]

ProcessFailedError.__module__ = __name__
