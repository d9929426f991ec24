"""Acting calls the layers of known modules directly, and switches argument checks off for its block alone."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.policies.direct_forward import apply_layers, as_functions
from sb3_ppo_ext.rollout.actors import EagerActor
from tests.environments import Toy


def test_layers_called_directly_see_parameters_replaced_since() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), torch.nn.Sequential(torch.nn.Linear(2, 1)))
    layers, x = as_functions(net), torch.randn(4, 2)
    assert len(layers) == 3 and torch.equal(apply_layers(layers, x), net(x))
    net[0].weight = torch.nn.Parameter(torch.ones(2, 2))
    assert torch.equal(apply_layers(layers, x), net(x))


def test_a_layer_with_a_forward_of_its_own_is_called_whole() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.forward = lambda input: input + 1  # type: ignore[method-assign]
    assert torch.equal(apply_layers(as_functions(layer), torch.ones(1, 2)), torch.full((1, 2), 2.0))


def test_distributions_check_again_after_acting_and_after_a_failure() -> None:
    model = PPOX("MlpPolicy", Toy(), n_steps=16, batch_size=8, device="cpu")
    actor = EagerActor(model.policy)
    actor.act(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="Expected parameter"):
        actor.act(torch.full((1, 4), torch.nan))
    with pytest.raises(ValueError):
        Categorical(logits=torch.tensor([torch.nan]))
