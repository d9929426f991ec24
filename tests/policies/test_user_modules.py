"""Eager, a user's modules are called as PPO calls them; passes that PPO does not make leave no trace in them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from sb3_ppo_ext import PPOX, AdaptiveKL
from sb3_ppo_ext.policies.side_effects import only_computes, without_trace
from tests.environments import Toy
from tests.small_models import assert_same_parameters

GLOBAL_GENERATOR = np.random.default_rng(0)


class Extractor(BaseFeaturesExtractor):
    """Does something besides computing its four features."""

    mean: Tensor
    calls = 0  # of all instances

    def __init__(self, space: Any) -> None:
        super().__init__(space, 4)
        self.log: list[float] = []
        self.count = 0
        self.register_buffer("mean", torch.zeros(4))
        self.plain = torch.zeros(4)
        self.numbers = np.random.default_rng(1)
        self.generator = torch.Generator().manual_seed(1)
        self.normalize = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        features: Tensor = x + 0.1 * self.extra(x)
        return features

    def extra(self, x: Tensor) -> Any:
        return torch.zeros(())


class Torch(Extractor):
    def extra(self, x: Tensor) -> Any:
        return torch.randn(4)


class Numpy(Extractor):
    def extra(self, x: Tensor) -> Any:
        return float(np.random.randn())


class Python(Extractor):
    def extra(self, x: Tensor) -> Any:
        return random.random()


class GlobalGenerator(Extractor):
    def extra(self, x: Tensor) -> Any:
        return float(GLOBAL_GENERATOR.normal())


class OwnGenerators(Extractor):
    def extra(self, x: Tensor) -> Any:
        return torch.randn(4, generator=self.generator) + float(self.numbers.normal())


class DropoutAlways(Extractor):
    def extra(self, x: Tensor) -> Any:
        return nn.functional.dropout(x, 0.5, training=True)


class InPlaceBuffer(Extractor):
    def extra(self, x: Tensor) -> Any:
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.mean


class AssignedBuffer(Extractor):
    def extra(self, x: Tensor) -> Any:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.mean


class PlainTensor(Extractor):
    def extra(self, x: Tensor) -> Any:
        self.plain += 0.1
        return self.plain.clone()


class Counter(Extractor):
    def extra(self, x: Tensor) -> Any:
        self.count += 1
        return self.count % 3


class Log(Extractor):
    def extra(self, x: Tensor) -> Any:
        self.log.append(0.01)
        return sum(self.log)


class Normalized(Extractor):
    def extra(self, x: Tensor) -> Any:
        return self.normalize(x)


class OfTheClass(Extractor):
    def extra(self, x: Tensor) -> Any:
        return type(self).calls % 5


EXTRACTORS: tuple[type[Extractor], ...] = (
    *(Extractor, Torch, Numpy, Python, GlobalGenerator, OwnGenerators, DropoutAlways, InPlaceBuffer, AssignedBuffer),
    *(PlainTensor, Counter, Log, Normalized, OfTheClass),
)
SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


def model_of(
    algorithm: Callable[..., Any], extractor: type[Extractor] | None, action: str = "discrete", **options: Any
) -> Any:
    global GLOBAL_GENERATOR
    GLOBAL_GENERATOR = np.random.default_rng(0)
    if extractor is not None:
        extractor.calls = 0
    kwargs: Any = {} if extractor is None else {"features_extractor_class": extractor}
    return algorithm(
        options.pop("policy", "MlpPolicy"), Toy(action=action), policy_kwargs=kwargs, **{**SETTINGS, **options}
    )


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_default_knobs_are_ppo_bit_for_bit_whatever_a_module_does(extractor: type[Extractor]) -> None:
    models, calls = [], []
    cases: list[tuple[Any, dict[str, Any]]] = [(PPO, {}), (PPOX, {"compile": False})]
    for algorithm, options in cases:
        models.append(model_of(algorithm, extractor, "box", **options).learn(96))
        calls.append(extractor.calls)
    assert_same_parameters(*models)
    assert calls[0] == calls[1]
    mine, theirs = (model.policy.features_extractor for model in models)
    assert (mine.count, mine.log, mine.training) == (theirs.count, theirs.log, theirs.training)
    assert torch.equal(mine.plain, theirs.plain)


@pytest.mark.parametrize(
    "options", [{"target_kl": 1e-4}, {"use_sde": True, "sde_sample_freq": 4}, {"batch_size": 24}], ids=str
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_so_they_are_when_epochs_end_early_or_exploration_is_drawn_anew(options: dict[str, Any]) -> None:
    assert_same_parameters(*(model_of(algorithm, Torch, "box", **options).learn(96) for algorithm in (PPO, PPOX)))


class Hooked(ActorCriticPolicy):
    """Counts calls of a known layer by hooks, forwards and backwards."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seen = {"forward": 0, "backward": 0}
        layer = self.mlp_extractor.policy_net[2]
        layer.register_forward_hook(lambda *_: self.note("forward"))
        layer.register_full_backward_hook(self.doubled)

    def note(self, what: str) -> None:
        self.seen[what] += 1

    def doubled(self, module: nn.Module, gradients: Any, _: Any) -> Any:
        self.note("backward")
        return (2 * gradients[0],)


@pytest.mark.parametrize("kinds", [("forward", "backward"), ("backward",)])
def test_hooks_are_called_as_often_as_by_ppo(kinds: tuple[str, ...]) -> None:
    models = []
    cases: list[tuple[Any, dict[str, Any]]] = [(PPO, {}), (PPOX, {"compile": False})]
    for algorithm, options in cases:
        model = model_of(algorithm, None, policy=Hooked, **options)
        if "forward" not in kinds:
            model.policy.mlp_extractor.policy_net[2]._forward_hooks.clear()
        models.append(model.learn(96))
    assert models[0].policy.seen == models[1].policy.seen
    assert all(models[1].policy.seen[kind] > 0 for kind in kinds)
    assert_same_parameters(*models)


def test_the_logs_exact_kl_is_that_of_the_last_minibatch_where_no_pass_is_made_for_it() -> None:
    # In one epoch of one minibatch nothing has moved before its only step; with more, what has moved is far below the
    # sampled estimator's noise from it.
    for action in ("box", "discrete", "multidiscrete", "multibinary"):
        still = model_of(PPOX, Extractor, action, n_epochs=1, batch_size=32).learn(32).logger.name_to_value
        assert still["train/kl_exact"] == pytest.approx(0, abs=1e-6)
    settings = {"n_steps": 1024, "batch_size": 512, "n_epochs": 5, "learning_rate": 1e-3}
    known = model_of(PPOX, None, "box", **settings).learn(1024).logger.name_to_value
    mine = model_of(PPOX, Extractor, "box", **settings).learn(1024).logger.name_to_value
    for values in (known, mine):
        assert values["train/kl_exact"] == pytest.approx(values["train/approx_kl"], rel=0.5)


def test_a_controller_sees_the_kl_to_the_distributions_that_acted() -> None:
    # The first minibatch, before any step, has a KL of 0 to them and to nothing else, for what is drawn is drawn anew.
    model = model_of(PPOX, Extractor, "box", kl_coef=AdaptiveKL(1.0, 1e9), n_epochs=1, batch_size=32)
    model.learn(32)
    assert model.logger.name_to_value["train/kl_exact"] == pytest.approx(0, abs=1e-6)
    assert Extractor.calls == 32 + 3 + 1 + 1  # steps, values at three time limits and after the last step, minibatch


@pytest.mark.parametrize("extractor", [kind for kind in EXTRACTORS if kind not in (GlobalGenerator, OfTheClass)])
def test_a_pass_without_trace_leaves_streams_and_module_as_they_were(extractor: type[Extractor]) -> None:
    models = [model_of(PPOX, extractor, compile=False) for _ in range(2)]
    observation = torch.ones(3, 4)
    outputs = []
    for model, beside in zip(models, (False, True), strict=True):
        model.set_random_seed(0)
        model.policy.predict_values(observation)
        if beside:
            with without_trace(model.policy):
                model.policy.predict_values(observation)
                model.policy.features_extractor.invented = 1
        outputs.append(torch.stack([model.policy.predict_values(observation) for _ in range(3)]))
    assert torch.equal(*outputs)
    assert not hasattr(models[1].policy.features_extractor, "invented")


def test_recomputing_advantages_moves_no_state_of_a_module() -> None:
    counted = []
    for recompute in (False, True):
        model = model_of(PPOX, InPlaceBuffer, recompute_advantage=recompute, learning_rate=0.0, compile=False).learn(96)
        counted.append(model.policy.features_extractor.mean)
    assert torch.equal(*counted)


def test_only_known_modules_without_hooks_are_taken_to_do_nothing_but_compute() -> None:
    policy = model_of(PPOX, None).policy
    assert only_computes(policy) and not only_computes(model_of(PPOX, Extractor).policy)
    handle = policy.value_net.register_forward_pre_hook(lambda *_: None)
    assert not only_computes(policy)
    handle.remove()
    everywhere = global_hooks.register_module_forward_hook(lambda *_: None)
    assert not only_computes(policy)
    everywhere.remove()
    policy.value_net.forward = lambda x: x.sum(-1, keepdim=True)
    assert not only_computes(policy)
