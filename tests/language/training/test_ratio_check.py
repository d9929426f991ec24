from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, RatioError
from sb3_ppo_ext.language.engines.family import TokenFamily
from sb3_ppo_ext.language.model import causal_lm as model_module
from sb3_ppo_ext.language.model import generation
from sb3_ppo_ext.language.training import ratio_check as ratio
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from tests.language import setups, tiny


@pytest.mark.parametrize("value", ["shared", "branch", "separate"])
@pytest.mark.parametrize("lora", [None, {"r": 2, "init_lora_weights": False}])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sampling_and_training_agree(family: str, lora: dict[str, Any] | None, value: str) -> None:
    """Ragged prompts and responses; the check would raise, and the first ratio is 1 to rounding."""
    kwargs = {"model": lambda: tiny.model(family), "lora": lora, "value": value, "temperature": 0.7}
    model = setups.ppox(policy_kwargs=kwargs, n_steps=4, n_epochs=1, batch_size=16, learning_rate=0.0)
    model.learn(32)
    assert model.logger.name_to_value["train/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert model.rollout_buffer.masks.sum(-1).std() > 0  # type: ignore[attr-defined]  # a SequenceRolloutBuffer


def test_a_temperature_ignored_in_training_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = setups.ppox(policy_kwargs={"temperature": 0.7})
    policy, sample = model.policy, generation.generate
    assert isinstance(policy, LanguageModelPolicy)

    def at_one(*args: Any, **kwargs: Any) -> generation.Response:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy.lm, "temperature", 1.0)
            return sample(*args, **kwargs)

    monkeypatch.setattr("sb3_ppo_ext.language.policies.language_model.generate", at_one)
    with pytest.raises(RatioError, match="at another temperature"):
        model.learn(16)


def test_missing_positions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only GPT-2 notices: rotary models see differences of positions."""
    model, sample = setups.ppox(), generation.generate

    def without(*args: Any, **kwargs: Any) -> generation.Response:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model_module, "positions", ratio.counted_from_the_left)
            return sample(*args, **kwargs)

    monkeypatch.setattr("sb3_ppo_ext.language.policies.language_model.generate", without)
    with pytest.raises(RatioError, match="without position ids"):
        model.learn(16)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_missing_mask_is_named(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = setups.ppox(policy_kwargs={"model": lambda: tiny.model(family)})
    policy, sample = model.policy, generation.generate
    assert isinstance(policy, LanguageModelPolicy)
    hidden = policy.lm.hidden

    def unmasked(*args: Any, **kwargs: Any) -> generation.Response:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(policy.lm, "hidden", lambda ids, mask, *a, **kw: hidden(ids, torch.ones_like(mask), *a, **kw))
            return sample(*args, **kwargs)

    monkeypatch.setattr("sb3_ppo_ext.language.policies.language_model.generate", unmasked)
    with pytest.raises(RatioError, match="without an attention mask"):
        model.learn(16)


def test_dropout_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = setups.ppox()
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    prepare = TokenFamily.update

    def with_dropout(self: TokenFamily, *args: Any) -> Any:
        for part in policy.modules():
            if isinstance(part, nn.Dropout):
                part.p, part.training = 0.3, True
        return prepare(self, *args)

    monkeypatch.setattr(TokenFamily, "update", with_dropout)
    with pytest.raises(RatioError, match="dropout is on"):
        model.learn(16)


def test_parameters_that_changed_meanwhile_are_not_blamed_on_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    model = setups.ppox()
    policy, prepare = model.policy, TokenFamily.update
    assert isinstance(policy, LanguageModelPolicy)

    def moved(self: TokenFamily, *args: Any) -> Any:
        with torch.no_grad():
            for parameter in policy.model_parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return prepare(self, *args)

    monkeypatch.setattr(TokenFamily, "update", moved)
    with pytest.raises(RatioError, match="none of the usual mistakes"):
        model.learn(16)


def test_half_precision_only_warns() -> None:
    model = setups.ppox(policy_kwargs={"dtype": "bfloat16"})
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    check = ratio.RatioCheck(policy)
    model.learn(16)  # rounding alone stays below the tolerance
    batch = next(iter(model._family.rollout(model._run()).minibatches(8)))
    with pytest.warns(TrainingWarning, match="differ by up to 0.5 nats"):
        check(batch, 0.5)


def test_sampling_in_another_precision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sample = setups.ppox(), generation.generate
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    half = copy.deepcopy(policy.lm).to(torch.bfloat16)

    def in_half(own: Any, *args: Any, **kwargs: Any) -> generation.Response:
        return sample(half, *args, **{**kwargs, "value_of": lambda hidden: torch.zeros(len(hidden))})

    monkeypatch.setattr("sb3_ppo_ext.language.policies.language_model.generate", in_half)
    with pytest.raises(RatioError, match=r"another precision than that of the weights, torch\.float32"):
        model.learn(16)


@pytest.mark.parametrize("value", ["shared", "branch", "separate"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_half_precision_trains_and_saves(family: str, value: str, tmp_path: Path) -> None:
    """Without a warning, which would be an error here: rounding between one pass and token by token is tolerated."""
    kwargs = {"model": lambda: tiny.model(family, sharpness=3.0), "dtype": "bfloat16", "value": value}
    model = setups.ppox(policy_kwargs=kwargs, ref_kl_coef=0.1, learning_rate=2e-3)
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    before = [parameter.clone() for parameter in policy.model_parameters()]
    model.learn(16)
    assert {parameter.dtype for parameter in policy.model_parameters()} == {torch.bfloat16}
    assert setups.value_head(policy).weight.dtype == torch.float32
    assert any(not one.equal(other) for one, other in zip(before, policy.model_parameters(), strict=True))
    # What is kept of the rollout is what was sampled with, in float32; the update's own differ by rounding.
    batch = next(iter(model._family.rollout(model._run()).minibatches(16)))
    assert batch.action_log_prob.dtype == torch.float32
    model.save(tmp_path / "half")
    loaded = PPOX.load(tmp_path / "half", device="cpu")
    for name, tensor in policy.state_dict().items():
        assert loaded.policy.state_dict()[name].equal(tensor) and loaded.policy.state_dict()[name].dtype == tensor.dtype
    policy.save_pretrained(tmp_path / "plain")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="auto").dtype == torch.bfloat16
