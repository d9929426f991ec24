"""Numbers that are not finite: the layer and the row they first appear in, before anything is trained on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language.engines import engine as token_engine
from sb3_ppo_ext.language.engines.family import TokenFamily
from sb3_ppo_ext.language.model.nan_origin import origin
from sb3_ppo_ext.monitoring.divergence import DivergedError
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from tests.language import setups, tiny

NAN = float("nan")


def llama(max_new_tokens: int = setups.LENGTH) -> PPOX:
    """In the order of ``setups.PROMPTS``, twice in the eight rows; the output layer has weights of its own."""
    env = setups.env(shuffle=False, max_new_tokens=max_new_tokens)
    return setups.ppox(policy_kwargs={"model": lambda: tiny.model("llama")}, environment=env)


def untrained(model: PPOX, message: str) -> None:
    before = [parameter.clone() for parameter in model.policy.parameters()]
    with pytest.raises(DivergedError, match=message):
        model.learn(16)
    for parameter, value in zip(model.policy.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=0, atol=0, equal_nan=True)


def test_a_nan_in_a_weight_is_found_with_its_layer_and_the_row_that_reads_it() -> None:
    model = llama(max_new_tokens=1)  # no token of a response is read
    with torch.no_grad():
        model.policy.get_parameter("lm.lm.model.embed_tokens.weight")[12] = NAN  # in the fourth prompt alone
    untrained(
        model,
        r"policy's lm.lm.model.embed_tokens.weight at \(12, 0\) is nan .*"
        r"log_prob of row 3, token 0, is nan .* the first layer to give such a number is model.embed_tokens "
        r"\(Embedding, whose weight is not finite either\), for row 3",
    )


def test_an_overflow_without_a_bad_weight_is_found_where_it_happens() -> None:
    model = llama()
    layer = model.policy.get_submodule("lm.lm.model.layers.1.mlp.down_proj")

    def overflow(_: Any, __: Any, output: torch.Tensor) -> None:
        if len(output) == 8:  # not the prompts, which go through the model once for all of their responses
            output[2, -1] = torch.inf  # the third row

    layer.register_forward_hook(overflow)
    untrained(model, r"row 2, token 1, is nan .* is model.layers.1.mlp.down_proj \(Linear\), for row 2")


def test_what_stands_at_padding_is_nobodys() -> None:
    policy, tokens = setups.policy(model=lambda: tiny.model("llama")), tiny.ragged_tokens()
    row, slot = (int(index) for index in (~tokens.prompt_mask).nonzero()[0])

    def spoil(name: str, row: int, slot: int) -> None:
        def hook(_: Any, __: Any, output: torch.Tensor) -> None:
            output[row, slot] = NAN

        policy.lm.plain.get_submodule(name).register_forward_hook(hook)

    spoil("model.layers.1.mlp.down_proj", row, slot)
    assert origin(policy.lm, tokens).startswith("every layer's output is finite")
    spoil("model.norm", 2, -1 if tokens.mask[2, -1] else 5)  # a token: the last, or the prompt's last
    assert "is model.norm (LlamaRMSNorm), for row 2" in origin(policy.lm, tokens)


def test_a_nan_in_the_reference_is_found() -> None:
    model = setups.ppox()
    with torch.no_grad():
        model.policy.get_parameter("reference.lm.transformer.wte.weight")[0, 0] = NAN
    untrained(model, r"reference's log-probability of response 0, token 0, is nan")


def test_what_goes_wrong_in_an_update_is_found_before_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    update = TokenFamily.update

    def broken(self: TokenFamily, run: Run, rollout: Rollout) -> Any:
        layer = run.policy.get_submodule("lm.lm.model.layers.0.mlp.up_proj")
        layer.register_forward_hook(lambda _, __, output: output * torch.inf)
        return update(self, run, rollout)

    monkeypatch.setattr(TokenFamily, "update", broken)
    monkeypatch.setattr(token_engine, "RatioCheck", lambda *_: None)  # it would come first
    untrained(
        model, r"epoch 0: .* In this minibatch the first layer .* model.layers.0.mlp.up_proj \(Linear\), for row 0"
    )
