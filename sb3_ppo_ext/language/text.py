"""Texts as observations that every vector environment of Stable-Baselines3 can carry."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LONG_TEXTS = ("refuse", "cut")


class TextObservation(gym.ObservationWrapper[np.ndarray, Any, str]):
    """The environment's strings as UTF-8 bytes, [max_bytes] of uint8 padded with zeros; nothing is lost.

    ``gymnasium.spaces.Text`` has no shape, which DummyVecEnv and the rollout buffers need. Longer texts are refused,
    or lose their beginning (``long_texts="cut"``; ``n_cut`` counts them).
    """

    def __init__(self, env: gym.Env[str, Any], max_bytes: int = 1024, *, long_texts: str = "refuse") -> None:
        super().__init__(env)
        if max_bytes < 1:
            raise ValueError(f"max_bytes={max_bytes}: at least 1 is needed")
        if long_texts not in LONG_TEXTS:
            raise ValueError(f"long_texts={long_texts!r}: one of {', '.join(map(repr, LONG_TEXTS))} is needed")
        self.max_bytes, self.long_texts, self.n_cut = max_bytes, long_texts, 0
        self.observation_space = spaces.Box(0, 255, (max_bytes,), np.uint8)

    def observation(self, observation: str) -> np.ndarray:
        """The text's bytes."""
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


def text_of(observation: np.ndarray) -> str:
    """The text that ``TextObservation`` made the bytes of."""
    return bytes(observation.astype(np.uint8)).rstrip(b"\0").decode()
