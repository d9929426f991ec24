"""A policy that chooses among three texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_ppo_ext.language import CandidatePolicy
from tests.language import tiny
from tests.language.words import tokenizer

ACTIONS = ["go left now", "go right", "stay"]


def policy(family: str = "gpt2", **options: Any) -> CandidatePolicy:
    settings: dict[str, Any] = {"model": lambda: tiny.model(family), "tokenizer": tokenizer(), "candidates": ACTIONS}
    return CandidatePolicy(
        spaces.Box(0, 255, (60,), np.uint8), spaces.Discrete(3), lambda _: 1e-3, **{**settings, **options}
    )
