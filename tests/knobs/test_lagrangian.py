from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sb3_ppo_ext import AdaptiveKL, Lagrangian
from sb3_ppo_ext.knobs.parsing import parse_knob


def test_the_multiplier_moves_by_the_exponential_of_the_error_up_to_the_limit() -> None:
    law = Lagrangian(rate=0.1, limit=1.0)
    # At the bound nothing moves; 1.5 times the bound: exp(0.05); 10 times: exp(0.1), the limit; 0: exp(-0.1).
    pressures = [law(excess, 1) for excess in (1.0, 1.5, 10.0, 0.0)]
    assert pressures == pytest.approx([1.0, math.exp(0.05), math.exp(0.1), math.exp(-0.1)])


def test_tensors_and_floats_move_alike() -> None:
    law = Lagrangian(0.2)
    excess = torch.tensor(1.3, dtype=torch.float64)
    assert law(excess, 1).item() == pytest.approx(law(1.3, 1), rel=1e-12)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_loop_comes_to_rest_at_the_bound(seed: int, sigma: float) -> None:
    # A plant: the KL of an update is c / (1 + penalty), with lognormal noise of mean 1; c changes by 5 half-way.
    random = np.random.default_rng(seed)
    controller = AdaptiveKL(1.0, 0.02, Lagrangian(0.1), every="minibatch").bind("kl_coef")
    kls = []
    for step in range(4000):
        scale = 0.5 if step < 2000 else 2.5
        kls.append(scale / (1 + controller.value) * math.exp(random.normal(0.0, sigma) - sigma**2 / 2))
        controller.update(kls[-1], 64)
    for half in (kls[1000:2000], kls[3000:]):
        assert np.mean(half) == pytest.approx(0.02, rel=0.2)


def test_it_has_a_text_and_a_dict_form() -> None:
    form = {"adaptive_kl": {"start": 1.0, "target": 0.03, "law": {"lagrangian": {"rate": 0.05}}, "every": "minibatch"}}
    assert parse_knob("kl_coef", form) == AdaptiveKL(1.0, 0.03, Lagrangian(0.05), every="minibatch").bind("kl_coef")
    named = parse_knob("kl_coef", {"adaptive_kl": {"start": 1.0, "target": 0.03, "law": "lagrangian:0.05"}})
    assert named.law == Lagrangian(0.05)  # type: ignore[union-attr]  # a controller


@pytest.mark.parametrize("field", ["rate", "limit"])
def test_a_wrong_number_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"Lagrangian: {field} is 0.0; it must be above 0"):
        Lagrangian(**{field: 0})
