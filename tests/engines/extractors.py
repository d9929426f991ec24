"""A features extractor with a test's own function as its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor

Forward = Callable[[Any, Tensor], Any]


class Extractor(BaseFeaturesExtractor):
    """Its forward pass is put in by the tests."""

    def __init__(self, space: Any, forward: Forward) -> None:
        super().__init__(space, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("last", torch.zeros(4))
        self.calls, self.draws = 0, np.random.default_rng(0)
        self.seen: list[int] = []
        self.constant = torch.ones(4)
        self._forward = forward

    def forward(self, x: Tensor) -> Any:
        return self._forward(self, x)
