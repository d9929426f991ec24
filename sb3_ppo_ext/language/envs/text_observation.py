"""Texts as observations that every vector environment of Stable-Baselines3 can carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_ppo_ext.language.inputs import at_least, one_of

LONG_TEXTS = ("refuse", "cut")
TEXT, ACTION_MASK = "text", "action_mask"


class TextObservation(gym.ObservationWrapper[Any, Any, str]):
    """The environment's strings as UTF-8 bytes, [max_bytes] of uint8 padded with zeros; nothing is lost.

    ``gymnasium.spaces.Text`` has no shape, which DummyVecEnv and the rollout buffers need. Longer texts are refused,
    or lose their beginning (``long_texts="cut"``; ``n_cut`` counts them).

    With ``action_masks=True`` an observation is a Dict of that "text" and of "action_mask" [n], what the environment's
    ``action_masks()`` allows next (the method of sb3-contrib's MaskablePPO).
    """

    def __init__(
        self,
        env: gym.Env[str, Any],
        max_bytes: int = 1024,
        *,
        long_texts: str = "refuse",
        action_masks: bool = False,
    ) -> None:
        super().__init__(env)
        max_bytes = at_least(1, "max_bytes", max_bytes)
        one_of(LONG_TEXTS, "long_texts", long_texts)
        self.max_bytes, self.long_texts, self.n_cut = max_bytes, long_texts, 0
        self.observation_space = spaces.Box(0, 255, (max_bytes,), np.uint8)
        self.masks_of = _masks_of(env) if action_masks else None
        if isinstance(env.action_space, spaces.Discrete) and action_masks:
            shape = (int(env.action_space.n),)
            allowed: spaces.Space[Any] = spaces.Box(0, 1, shape, np.int8)
            self.observation_space = spaces.Dict({TEXT: self.observation_space, ACTION_MASK: allowed})

    def observation(self, observation: str) -> Any:
        """The text's bytes, and with ``action_masks`` what is allowed."""
        padded = self._bytes_of(observation)
        if self.masks_of is None:
            return padded
        returned = self.masks_of()
        allowed = np.asarray(returned)
        if allowed.shape != self.observation_space[ACTION_MASK].shape or not np.isin(allowed, (0, 1)).all():  # type: ignore[index]  # a Dict
            raise ValueError(
                f"action_masks() returned {returned!r}; True or False for each of the {self.env.action_space} is needed"
            )
        return {TEXT: padded, ACTION_MASK: allowed.astype(np.int8)}

    def _bytes_of(self, observation: str) -> np.ndarray:
        if not isinstance(observation, str):
            raise ValueError(f"the environment's observation is {observation!r}; TextObservation is for strings")
        encoded = observation.encode()
        if b"\0" in encoded:
            raise ValueError(f"the environment's text has a NUL character, which marks the end here: {observation!r}")
        if len(encoded) > self.max_bytes:
            if self.long_texts == "refuse":
                raise ValueError(
                    f"the environment's text has {len(encoded)} bytes, max_bytes={self.max_bytes}: raise it, or pass "
                    f'long_texts="cut". It begins with {observation[:60]!r}'
                )
            self.n_cut += 1
            encoded = encoded[-self.max_bytes :].decode(errors="ignore").encode()  # not in the middle of a character
        padded = np.zeros(self.max_bytes, np.uint8)
        padded[: len(encoded)] = np.frombuffer(encoded, np.uint8)
        return padded


def _masks_of(env: gym.Env[str, Any]) -> Callable[[], Any]:
    if not isinstance(env.action_space, spaces.Discrete):
        raise ValueError(f"action_masks=True: the action space is {env.action_space}; a Discrete one is needed")
    if not env.has_wrapper_attr("action_masks"):
        raise ValueError(
            "action_masks=True: the environment has no method action_masks(), which is to return True or False for "
            "each action"
        )
    masks_of: Callable[[], Any] = env.get_wrapper_attr("action_masks")
    return masks_of


def text_of(observation: np.ndarray) -> str:
    """The text that ``TextObservation`` made the bytes of."""
    return bytes(observation.astype(np.uint8)).rstrip(b"\0").decode()
