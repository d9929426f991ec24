"""What the other process does: ``python -m tests.checkpoints.environments.new_process FILE`` continues saved runs."""

from __future__ import annotations

import pickle
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize, VecTransposeImage

from sb3_ppo_ext.vec_env import GymnasiumVecEnv
from tests.checkpoints.environments import kinds
from tests.checkpoints.environments.continuing import Make, continued


def atari(**arguments: Any) -> VecTransposeImage:
    import ale_py

    gym.register_envs(ale_py)
    return VecTransposeImage(VecFrameStack(make_atari_env("ALE/Pong-v5", 2, env_kwargs=arguments), 4))


CASES: dict[str, Make] = {
    "CartPole": partial(make_vec_env, "CartPole-v1", 2),
    "VecNormalize of Pendulum": lambda: VecNormalize(make_vec_env("Pendulum-v1", 2)),
    "CartPoleVectorEnv": partial(GymnasiumVecEnv, "CartPole-v1", 2),
    "own state_dict": partial(make_vec_env, kinds.SavesItself, 2),
}
WITH_EXTRAS: dict[str, tuple[str, Make]] = {
    "Ant": ("mujoco", partial(make_vec_env, "Ant-v5", 2)),
    "LunarLander": ("Box2D", partial(make_vec_env, "LunarLander-v3", 2)),
    "Pong": ("ale_py", atari),
}


def main(file: str) -> None:
    """Prints the name of every run that goes on exactly."""
    warnings.simplefilter("ignore")
    for name, run in pickle.loads(Path(file).read_bytes()).items():
        make = CASES[name] if name in CASES else WITH_EXTRAS[name][1]
        restored, equal = continued(make, run)
        print(name if equal and not restored else f"{name}: {restored}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
