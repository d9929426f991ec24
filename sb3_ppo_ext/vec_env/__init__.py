"""Vector environments as SB3 VecEnvs: Gymnasium's and EnvPool's. Imports nothing else of this package."""

from sb3_ppo_ext.vec_env.envpool_env import EnvPoolVecEnv
from sb3_ppo_ext.vec_env.gymnasium_env import GymnasiumVecEnv

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv"]
