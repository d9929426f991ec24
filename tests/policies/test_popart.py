from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.policies.popart import PopArtLinear
from tests.environments import Toy


def head() -> PopArtLinear:
    torch.manual_seed(0)
    return PopArtLinear(nn.Linear(4, 1))


def test_the_first_rollout_counts_in_full() -> None:
    layer = head()
    layer.update(torch.tensor([100.0, 300.0]))
    torch.testing.assert_close(layer.mean, torch.tensor(200.0))
    torch.testing.assert_close(layer.std, torch.tensor(100.0))


def test_later_rollouts_are_averaged_with_decaying_weights() -> None:
    layer = head()
    layer.update(torch.tensor([1.0, 1.0]))
    layer.update(torch.tensor([2.0, 2.0]))
    # weights 0.99 and 1: mean = (0.99 * 1 + 2) / 1.99
    torch.testing.assert_close(layer.mean, torch.tensor(2.99 / 1.99))


def test_an_untrained_head_begins_at_the_mean_return() -> None:
    layer, features = head(), torch.randn(8, 4)
    raw = layer(features)
    layer.update(torch.tensor([90.0, 110.0]))
    torch.testing.assert_close(layer(features), 10 * raw + 100)


def test_values_stay_what_they_were_when_the_statistics_move() -> None:
    layer, features = head(), torch.randn(8, 4)
    layer.update(torch.tensor([-5.0, 15.0]))
    before = layer(features)
    layer.update(torch.tensor([1000.0, 3000.0]))
    assert layer.std > 300
    torch.testing.assert_close(layer(features), before, atol=1e-6 * layer.std.item(), rtol=1e-4)


def test_it_keeps_the_layers_own_parameters() -> None:
    plain = nn.Linear(4, 1)
    layer = PopArtLinear(plain)
    assert layer.weight is plain.weight and layer.bias is plain.bias
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}


def trained(**arguments: Any) -> PPOX:
    model = PPOX("MlpPolicy", Toy(), n_steps=64, n_epochs=3, seed=0, **arguments)
    return model.learn(128)


def test_the_loss_counts_in_units_of_the_return_and_predictions_in_reward_units() -> None:
    torch.manual_seed(0)
    model = trained(normalize_value=True, gamma=0.999)
    layer = model.policy.value_net
    assert isinstance(layer, PopArtLinear)
    returns = torch.from_numpy(model.rollout_buffer.returns).flatten()
    torch.testing.assert_close(layer.std.item(), returns.std().item(), rtol=1.0, atol=0)
    value = model.policy.predict_values(torch.zeros(1, 4))
    assert abs(value.item() - returns.mean().item()) < 3 * returns.std().item()
    # Mean squared error over variance: 1 for a value function that knows the mean of these very returns, a few where
    # it has been taught by one rollout. In reward units it would be the squared distance of 0 to returns of about 15.
    assert model.logger.name_to_value["train/value_loss"] < 4
    assert returns.square().mean() > 100
    assert model.logger.name_to_value["train/value_scale"] == layer.std.item()


def test_the_objective_does_not_see_the_scale_of_the_reward() -> None:
    class Scaled(Toy):
        def step(self, action):  # type: ignore[no-untyped-def]
            observation, reward, *rest = super().step(action)
            return (observation, 1024 * reward, *rest)  # a power of two: exact in floating point

    losses = []
    for env in (Toy(), Scaled()):
        torch.manual_seed(0)
        model = PPOX("MlpPolicy", env, n_steps=64, n_epochs=1, seed=0, normalize_value=True, max_grad_norm=1e9)
        nn.init.zeros_(model.policy.value_net.weight)  # so that both begin at V = mean
        model.learn(64)
        losses.append(model.logger.name_to_value["train/value_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_saved_with_the_model_and_plain_zips_load_into_it(tmp_path: Path) -> None:
    model = trained(normalize_value=True)
    model.save(tmp_path / "normalized")
    loaded = PPOX.load(tmp_path / "normalized")
    for name, tensor in model.policy.state_dict().items():
        torch.testing.assert_close(loaded.policy.state_dict()[name], tensor, rtol=0, atol=0)
    plain = PPO("MlpPolicy", Toy(), n_steps=64).learn(64)
    plain.save(tmp_path / "plain")
    upgraded = PPOX.load(tmp_path / "plain", env=Toy(), normalize_value=True)
    observation = torch.ones(1, 4)
    torch.testing.assert_close(upgraded.policy.predict_values(observation), plain.policy.predict_values(observation))
    upgraded.learn(64)
    assert upgraded.policy.value_net.std != 1.0


def values_of(policy: Any) -> torch.Tensor:
    values: torch.Tensor = policy.predict_values(torch.linspace(-2, 2, 12).view(3, 4))
    return values.detach()


def test_a_policy_saved_alone_gives_the_same_values_to_the_last_bit(tmp_path: Path) -> None:
    policy = trained(normalize_value=True).policy
    policy.save(str(tmp_path / "policy.zip"))
    for loaded in (type(policy).load(str(tmp_path / "policy.zip")), copy.deepcopy(policy)):
        torch.testing.assert_close(values_of(loaded), values_of(policy), rtol=0, atol=0)
    torch.save(policy, tmp_path / "whole")
    whole = torch.load(tmp_path / "whole", weights_only=False)
    torch.testing.assert_close(values_of(whole), values_of(policy), rtol=0, atol=0)
    torch.testing.assert_close(whole.value_net.moments, policy.value_net.moments, rtol=0, atol=0)


def test_plain_ppo_loads_the_model_with_its_values_and_hands_it_back(tmp_path: Path) -> None:
    model = trained(normalize_value=True)
    model.save(tmp_path / "ppox")
    ppo = PPO.load(tmp_path / "ppox", env=Toy())
    plain = PPOX.load(tmp_path / "ppox", env=Toy(), normalize_value=False)
    other = PPO("MlpPolicy", Toy(), n_steps=64)
    other.set_parameters(model.get_parameters())  # type: ignore[arg-type]
    for loaded in (ppo, plain, other):
        assert type(loaded.policy.value_net) is nn.Linear
        torch.testing.assert_close(values_of(loaded.policy), values_of(model.policy), rtol=0, atol=0)
        loaded.learn(64)
    ppo.save(tmp_path / "ppo")
    back = PPOX.load(tmp_path / "ppo", env=Toy(), normalize_value=True)
    torch.testing.assert_close(values_of(back.policy), values_of(ppo.policy), rtol=0, atol=0)
    back.learn(64)
    assert back.policy.value_net.std != 1


def test_a_changed_state_keeps_the_statistics_and_gives_the_values_it_says() -> None:
    source, target = head(), head()
    source.update(torch.tensor([-5.0, 15.0]))  # mean 5, standard deviation 10
    state = source.state_dict()
    features = torch.randn(8, 4)
    state["weight"] = 2 * state["weight"]
    target.load_state_dict(state)
    wanted = nn.functional.linear(features, state["weight"], state["bias"])
    torch.testing.assert_close(target(features), wanted)
    assert (target.mean.item(), target.std.item()) == (5.0, 10.0)
    torch.testing.assert_close(target.weight, 2 * source.weight)
    # A plain dict has no metadata: the values come in the units that the target has.
    target.update(torch.tensor([90.0, 110.0]))
    target.load_state_dict({name: tensor.clone() for name, tensor in source.state_dict().items()})
    torch.testing.assert_close(target(features), source(features), rtol=1e-5, atol=1e-4)
    assert target.std != 1


def test_a_state_of_the_first_kind_is_read() -> None:
    source, target, features = head(), head(), torch.randn(8, 4)
    source.update(torch.tensor([-5.0, 15.0]))
    names = ("weight", "bias", "mean", "std", "moments")
    target.load_state_dict({name: getattr(source, name).detach().clone() for name in names})
    for name in names:
        torch.testing.assert_close(getattr(target, name), getattr(source, name), rtol=0, atol=0)
    torch.testing.assert_close(target(features), source(features), rtol=0, atol=0)


def test_a_head_that_was_never_trained_is_still_that_after_loading(tmp_path: Path) -> None:
    def fresh() -> PPOX:
        return PPOX("MlpPolicy", Toy(), n_steps=64, seed=0, normalize_value=True, device="cpu")

    fresh().save(tmp_path / "fresh")
    loaded = PPOX.load(tmp_path / "fresh", env=Toy()).learn(64)
    straight = fresh().learn(64)
    torch.testing.assert_close(values_of(loaded.policy), values_of(straight.policy), rtol=0, atol=0)


class TwoLayerHead(ActorCriticPolicy):
    def _build(self, lr_schedule):  # type: ignore[no-untyped-def]
        super()._build(lr_schedule)
        self.value_net = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 1))  # type: ignore[assignment]


def test_another_head_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"TwoLayerHead.value_net.*normalize_value=False"):
        PPOX(TwoLayerHead, Toy(), normalize_value=True)
