"""Draws are torch's own, bit for bit; a policy of another kind is called as it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from torch.distributions import Categorical

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.policies.direct_forward import straight, through
from sb3_ppo_ext.rollout.actors import EagerActor, sampled
from tests.environments import Toy


def assert_same_draws(distribution: Any) -> None:
    state = torch.get_rng_state()
    for _ in range(3):
        torch.set_rng_state(state)
        expected = distribution.get_actions()
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        assert torch.equal(sampled(distribution), expected)
        assert torch.equal(torch.get_rng_state(), after)
        state = after


# From 16 numbers on torch draws normals by another algorithm, and vectors of 4, 8 or 16 have remainders.
SIZES = [(n, width) for n in (1, 2, 3, 7, 8, 15, 16, 17, 64, 257) for width in (1, 2, 3, 6, 17)]


@pytest.mark.parametrize(("n", "width"), SIZES)
def test_normal_draws_are_rsample_s(n: int, width: int) -> None:
    distribution = DiagGaussianDistribution(width).proba_distribution(torch.randn(n, width), torch.randn(width))
    assert_same_draws(distribution)


@pytest.mark.parametrize(("n", "width"), SIZES)
def test_categorical_draws_are_multinomial_s(n: int, width: int) -> None:
    logits = 3 * torch.randn(n, width)
    logits[0, 0] = 40.0  # the others have next to no probability
    assert_same_draws(CategoricalDistribution(width).proba_distribution(logits))


def test_a_choice_that_is_masked_out_is_never_drawn() -> None:
    distribution = CategoricalDistribution(3).proba_distribution(torch.tensor([[0.0, -torch.inf, 0.0]] * 512))
    assert_same_draws(distribution)
    assert not (sampled(distribution) == 1).any()


class Rounded(Categorical):
    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        return torch.full(self.batch_shape, 2)


def test_a_distribution_of_another_class_draws_itself() -> None:
    distribution = CategoricalDistribution(3)
    distribution.distribution = Rounded(logits=torch.zeros(5, 3))
    assert sampled(distribution).tolist() == [2] * 5


def test_layers_called_directly_see_parameters_replaced_since() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Sequential(torch.nn.Linear(2, 1)))
    layers, x = straight(net), torch.randn(4, 2)
    assert len(layers) == 3 and torch.equal(through(layers, x), net(x))
    net[0].weight = torch.nn.Parameter(torch.ones(2, 2))
    assert torch.equal(through(layers, x), net(x))


def test_a_layer_with_a_forward_of_its_own_is_called_whole() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.forward = lambda input: input + 1  # type: ignore[method-assign]
    assert torch.equal(through(straight(layer), torch.ones(1, 2)), torch.full((1, 2), 2.0))


def test_distributions_check_again_after_acting_and_after_a_failure() -> None:
    model = PPOX("MlpPolicy", Toy(), n_steps=16, batch_size=8, device="cpu")
    actor = EagerActor(model.policy)
    actor.act(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="Expected parameter"):
        actor.act(torch.full((1, 4), torch.nan))
    with pytest.raises(ValueError):
        Categorical(logits=torch.tensor([torch.nan]))
