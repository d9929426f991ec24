"""Copies to sample from: the trained model's distribution, up to the layout's rounding, and that model untouched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.loading import lora_config, with_adapter
from sb3_ppo_ext.language.model.packed_layers import Layout, SamplingLinear, fastest_layout, layouts_of
from sb3_ppo_ext.language.model.sampling_copy import SamplingCopy, merged_weights, shapes_of
from tests.language import tiny

F32, BF16 = torch.float32, torch.bfloat16
ADAPTERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "LoRA": {"r": 2},
    "DoRA": {"r": 2, "use_dora": True},
    "LoRA with the embedding": {"r": 2, "target_modules": ["q_proj", "embed_tokens"]},
    "LoRA and a whole head": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def trained(family: str = "llama", adapter: str = "LoRA") -> CausalLM:
    plain = tiny.model(family).eval()
    settings = ADAPTERS[adapter]
    torch.manual_seed(0)
    lm = with_adapter(plain, lora_config(settings, plain))
    model = CausalLM(lm, vocab_size=tiny.VOCABULARY, temperature=0.7)
    change(model)
    return model


def change(model: CausalLM) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))


@torch.no_grad()
def log_p(model: CausalLM) -> Tensor:
    tokens = tiny.ragged_tokens()
    return model.logits(model.hidden(*tokens.joined())).log_softmax(-1)[tokens.joined()[1]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("layout", layouts_of(F32, F32), ids=str)
def test_a_copy_has_the_distribution_of_the_model(family: str, layout: Layout) -> None:
    model = trained(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampling = SamplingCopy(model, layout, rows=4)
    for _ in range(2):  # the second time after a step of the optimizer
        sampling.refresh()
        torch.testing.assert_close(log_p(sampling.model), log_p(model), rtol=0, atol=2e-4)
        change(model)
    assert not any(name for name in sampling.model.state_dict() if "lora" in name)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items() if "lora" not in name)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_of_every_kind_are_merged(adapter: str) -> None:
    model = trained(adapter=adapter)
    sampling = SamplingCopy(model, Layout(F32, packed=False), rows=4)
    sampling.refresh()
    stale = log_p(sampling.model)
    torch.testing.assert_close(stale, log_p(model), rtol=0, atol=2e-4)
    change(model)
    assert (log_p(model) - stale).abs().max() > 0.01
    sampling.refresh()
    torch.testing.assert_close(log_p(sampling.model), log_p(model), rtol=0, atol=2e-4)


def test_half_precision_rounds_the_products_alone() -> None:
    """The relative error of a weight in bfloat16 is 2^-9; logits here are of order 10."""
    model = trained()
    gaps = []
    for layout in layouts_of(F32, BF16):
        sampling = SamplingCopy(model, layout, rows=4)
        sampling.refresh()
        gaps.append((log_p(sampling.model) - log_p(model)).abs().max().item())
        layers = [layer for layer in sampling.model.modules() if isinstance(layer, SamplingLinear)]
        assert len(layers) == len(shapes_of(model)) == 2 * 7 + 1
        *trunk, head = (layer.weight.dtype for layer in layers if layer.weight is not None)
        assert set(trunk) == {BF16} and head is F32
        assert sampling.model.hidden(*tiny.ragged_tokens().joined()).dtype is F32
    assert 1e-3 < max(gaps) < 1.0


def test_weights_by_name_are_those_of_the_merged_model() -> None:
    model = trained()
    plain = tiny.model("llama").eval()
    names = plain.state_dict().keys()
    weights = dict(merged_weights(model))
    assert weights.keys() == names
    plain.load_state_dict(weights)
    merged = CausalLM(plain, vocab_size=tiny.VOCABULARY, temperature=0.7)
    torch.testing.assert_close(log_p(merged), log_p(model), rtol=0, atol=2e-4)


def costs(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    names = {"float32": "plain", "float32, packed": "packed", "bfloat16": "half", "bfloat16, packed": "packed_half"}

    def measured(layout: Layout, shapes: Any, rows: int) -> float:
        if shapes == [(9, 4)]:
            return 0.0
        return seconds["scoring"] if rows == 256 else seconds[names[str(layout)]]

    monkeypatch.setattr("sb3_ppo_ext.language.model.packed_layers.seconds_per_pass", measured)
    monkeypatch.setattr("sb3_ppo_ext.language.model.packed_layers.has_packed_products", lambda dtype: True)


@pytest.mark.parametrize(
    ("scoring", "packed", "best"),
    [
        (0.0, 0.9, Layout(BF16, packed=True)),  # 10 steps of 0.5 s
        (5.0, 0.9, Layout(F32, packed=True)),  # 10 * 0.5 + 5 s of scoring 256 states, against 9 s
        (5.0, 0.97, Layout(F32, packed=False)),  # 9.7 s is not 5 % less than 10 s
    ],
)
def test_the_layout_is_the_fastest_with_all_its_work(
    monkeypatch: pytest.MonkeyPatch, scoring: float, packed: float, best: Layout
) -> None:
    costs(monkeypatch, plain=1.0, packed=packed, half=0.8, packed_half=0.5, scoring=scoring)
    own = Layout(F32, packed=False)
    work = {"rows": 2, "steps": 10, "scored": 256}
    assert fastest_layout(own, None, [(4, 4)], (9, 4), **work) == best
    assert fastest_layout(own, BF16, [(4, 4)], (9, 4), **work) == Layout(BF16, packed=True)


def test_the_probe_measures_here() -> None:
    own = Layout(F32, packed=False)
    found = fastest_layout(own, None, [(64, 32)] * 6, (100, 32), rows=4, steps=8, scored=64)
    assert found in layouts_of(F32, None)
