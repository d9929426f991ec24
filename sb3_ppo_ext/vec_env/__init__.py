"""Vector environments as SB3 VecEnvs: Gymnasium's and EnvPool's. Independent of the algorithm."""

from sb3_ppo_ext.vec_env.envpool_env import EnvPoolVecEnv
from sb3_ppo_ext.vec_env.gymnasium_env import GymnasiumVecEnv

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv"]

for _public in (EnvPoolVecEnv, GymnasiumVecEnv):
    _public.__module__ = __name__
