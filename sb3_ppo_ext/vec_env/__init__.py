"""Vector environments as SB3 VecEnvs: Gymnasium's, EnvPool's, and in Ray's actors. Independent of the algorithm."""

from sb3_ppo_ext.vec_env.envpool_env import EnvPoolVecEnv
from sb3_ppo_ext.vec_env.gymnasium_env import GymnasiumVecEnv
from sb3_ppo_ext.vec_env.remote.failures import RayWorkerError, RayWorkerWarning
from sb3_ppo_ext.vec_env.remote.ray_vec_env import RayVecEnv
from sb3_ppo_ext.vec_env.staggered import StaggeredStart

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv", "RayVecEnv", "RayWorkerError", "RayWorkerWarning", "StaggeredStart"]

for _public in (EnvPoolVecEnv, GymnasiumVecEnv, RayVecEnv, RayWorkerError, RayWorkerWarning, StaggeredStart):
    _public.__module__ = __name__
