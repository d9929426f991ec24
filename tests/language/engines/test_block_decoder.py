"""Responses by one compiled block for all of a model: the same tokens from one graph, for any rows and lengths."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.engines import block_decoder
from sb3_ppo_ext.language.engines.block_decoder import BlockDecoder, TokenBlocks
from sb3_ppo_ext.language.engines.block_kinds import blocks_of
from tests.language import setups, tiny
from tests.traced_graphs import Traced


def responses(policy: LanguageModelPolicy, rows: int, length: int, **options: Any) -> tuple[Tensor, ...]:
    prompt, mask = tiny.ragged_prompts(rows, length)
    mask[:, -1] = True
    torch.manual_seed(3)
    found: tuple[Tensor, ...] = policy({"input_ids": prompt, "attention_mask": mask}, **options)
    return found


@pytest.mark.parametrize("family", ["gpt2", "llama", "pythia"])
def test_the_same_tokens_and_log_probabilities_for_any_rows_and_lengths(family: str) -> None:
    policy, graphs = (
        setups.policy(model=partial(tiny.model, family), lora={"r": 2, "init_lora_weights": False}),
        Traced(),
    )
    decoder_of = partial(BlockDecoder, blocks=TokenBlocks(policy, graphs))
    for rows, length in ((4, 6), (1, 3), (7, 2)):
        eager = responses(policy, rows, length)
        compiled = responses(policy, rows, length, decoder_of=decoder_of)
        assert eager[0].equal(compiled[0])
        torch.testing.assert_close(torch.stack(eager[1:]), torch.stack(compiled[1:]), rtol=0, atol=1e-4)
        with torch.no_grad():  # a step of the optimizer, which the graph is to see
            for parameter in policy.model_parameters():
                parameter.mul_(1.05)
    assert graphs.made == len(graphs.libraries) == 1
    assert not any("forward" in vars(block) for block in blocks_of(policy.lm.trunk))


def test_rows_that_have_ended_are_left_out() -> None:
    policy, graphs = setups.policy(response=30), Traced()
    eager = responses(policy, 16, 4)
    compiled = responses(policy, 16, 4, decoder_of=partial(BlockDecoder, blocks=TokenBlocks(policy, graphs)))
    assert eager[0].equal(compiled[0])
    lengths = (eager[0] != tiny.PAD).sum(1)
    assert lengths.min() < lengths.median() < lengths.max()


def test_a_block_that_only_looks_alike_is_refused() -> None:
    policy = setups.policy(model=partial(tiny.model, "llama"))
    mlp = blocks_of(policy.lm.trunk)[1].get_submodule("mlp")
    forward = mlp.forward
    vars(mlp)["forward"] = lambda states: 2 * forward(states)
    with pytest.raises(CompileError, match="look alike and compute differently"):
        TokenBlocks(policy, Traced())


def test_blocks_with_and_without_an_adapter_have_a_graph_each(monkeypatch: pytest.MonkeyPatch) -> None:
    lora = {"r": 2, "layers_to_transform": [1], "init_lora_weights": False}
    policy, graphs = setups.policy(model=partial(tiny.model, "llama"), lora=lora), Traced()
    compiled = responses(policy, 4, 6, decoder_of=partial(BlockDecoder, blocks=TokenBlocks(policy, graphs)))
    assert responses(policy, 4, 6)[0].equal(compiled[0]) and graphs.made == 2
    monkeypatch.setattr(block_decoder, "KINDS", 1)
    with pytest.raises(CompileError, match="the blocks of LlamaModel are of 2 kinds"):
        TokenBlocks(policy, Traced())
