"""The generators that belong to a process: python's, numpy's, and torch's where it is loaded."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np

States = dict[str, Any]


def process_generators() -> States:
    """Their states."""
    states: States = {"python": random.getstate(), "numpy": np.random.get_state()}
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state().numpy().tobytes()
    return states


def set_process_generators(states: States) -> None:
    """Puts them back."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if "torch" in states and "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_rng_state(torch.frombuffer(bytearray(states["torch"]), dtype=torch.uint8))


def fresh_seed(seed: int | None, num_timesteps: int) -> int | None:
    """The seed of the episodes with which a run goes on after ``num_timesteps``; that of the run at its start.

    The same seed as at the start would repeat the first episodes of the run. None for a run without a seed.
    """
    if seed is None or num_timesteps == 0:
        return seed
    state = np.random.SeedSequence([seed % 2**32, num_timesteps]).generate_state(1)
    return int(state[0]) >> 1  # environments count up from it and stay below 2**32
