"""Environments that begin at the same time, and whose episodes end at the same time, brought out of step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym


class StaggeredStart(gym.Wrapper[Any, Any, Any, Any]):
    """Cuts the first episode of an environment at a random length, so that those beside it are at other moments.

    Where episodes end by a time limit alone, n environments that begin together stay together, and every rollout has
    all of them at one part of an episode. The lengths are uniform on [1, ``max_episode_steps``], from the generator of
    the environment, which the seed of the first reset sets. Episodes that follow the end of another are left as they
    are; a reset in the midst of one, as ``learn`` does it of all environments, is a start again. After rsl_rl's
    ``init_at_random_ep_len``.

    Given as ``make_vec_env(..., wrapper_class=StaggeredStart)``, or in the zoo's YAML by ``staggered_start: true``. A
    ``Monitor`` within it does not count the episode that is cut.

    :param env: the environment
    :param max_episode_steps: the length of an episode; None: that of the environment's ``spec``
    """

    def __init__(self, env: gym.Env[Any, Any], max_episode_steps: int | None = None) -> None:
        super().__init__(env)
        limit = max_episode_steps or (env.spec.max_episode_steps if env.spec is not None else None)
        if limit is None:
            raise ValueError(f"{env}: its spec has no max_episode_steps; pass StaggeredStart(env, max_episode_steps=n)")
        self.max_episode_steps = limit
        self.left = 0  # steps until the cut; 0: none
        self.ended = False  # the episode, by itself or by the cut

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begins an episode, which is to be cut unless it follows another."""
        observation, info = self.env.reset(**options)
        self.left = 0
        if not self.ended:
            self.left = int(self.env.np_random.integers(1, self.max_episode_steps, endpoint=True))
        self.ended = False
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step, which ends the first episode as a time limit does."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.left:
            self.left -= 1
            truncated = truncated or self.left == 0
        self.ended = terminated or truncated
        return observation, reward, terminated, truncated, info
