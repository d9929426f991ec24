"""Training whose products are in bfloat16, over weights, an optimizer and logits in float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.host.pytorch.layouts import has_packed_products
from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.engines.traced_tokens import require_one_precision
from sb3_ppo_ext.language.model import loading
from tests.language import setups, tiny

HALF: dict[str, Any] = {"sampler": "float32", "compute_dtype": "bfloat16"}

supported = pytest.mark.skipif(not has_packed_products(torch.bfloat16), reason="no products in bfloat16 here")


def gradient(policy: LanguageModelPolicy) -> Tensor:
    policy.zero_grad()
    log_prob, _, value = policy.evaluate_tokens(tiny.ragged_tokens(), entropy_grad=False)
    (log_prob.sum() + value.sum()).backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@supported
@pytest.mark.parametrize("value", ["shared", "branch", "separate"])
def test_log_probabilities_and_gradients_are_those_of_float32_up_to_rounding(value: str) -> None:
    policies = [
        setups.policy(model=lambda: tiny.model("llama"), value=value, **more) for more in (dict[str, Any](), HALF)
    ]
    with torch.no_grad():
        expected, found = (policy.evaluate_tokens(tiny.ragged_tokens(), entropy_grad=False)[0] for policy in policies)
    assert found.dtype is torch.float32
    assert 1e-4 < (found - expected).abs().max() < 1.0  # of some -10 nats, far from uniform
    exact, rounded = map(gradient, policies)
    assert rounded.dtype is torch.float32
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.98


@supported
@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_training_keeps_float32_and_its_checks(lora: dict[str, Any] | None, tmp_path: Any) -> None:
    kwargs = {**HALF, "lora": lora}
    model = setups.ppox(policy_kwargs=kwargs, ref_kl_coef=0.1)
    model.learn(32)
    log = model.logger.name_to_value
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    moments = [entry["exp_avg"].dtype for entry in policy.optimizer.state.values()]
    assert set(moments) == {torch.float32}
    assert log["sampler/log_ratio_max"] > 0  # drawn in float32
    model.save(tmp_path / "model.zip")
    loaded = PPOX.load(tmp_path / "model.zip", env=setups.env())
    assert isinstance(loaded.policy, LanguageModelPolicy) and loaded.policy.lm.compute_dtype is torch.bfloat16


@supported
def test_policy_and_reference_compute_alike() -> None:
    model = setups.ppox(policy_kwargs=HALF, learning_rate=0.0, ref_kl_coef=0.1)
    model.learn(16)
    assert abs(model.logger.name_to_value["lm/kl_ref"]) < 1e-3  # between bfloat16 and float32 it would be 0.01 and more


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"compute_dtype": "float16", "sampler": "float32"}, '"bfloat16" or None'),
        ({"compute_dtype": "bfloat16"}, "with sampler=None"),
        ({"compute_dtype": "bfloat16", "sampler": "bfloat16", "dtype": "bfloat16"}, "weights in float32"),
    ]
    for options, reason in cases:
        with pytest.raises(ValueError, match=reason):
            setups.policy(**options)
    monkeypatch.setattr(loading, "has_packed_products", lambda dtype: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no products in bfloat16"):
        setups.policy(**HALF)


@supported
def test_graphs_of_the_whole_model_are_refused_with_the_reason() -> None:
    with pytest.raises(CompileError, match="computes in bfloat16 over weights in float32"):
        require_one_precision(setups.policy(**HALF))
