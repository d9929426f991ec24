"""One compiled block for all blocks of a model: gradients are those of autograd, for any lengths, from two graphs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.engines import block_kinds
from sb3_ppo_ext.language.engines.block_gradients import BlockGradients
from sb3_ppo_ext.language.engines.block_kinds import blocks_of
from sb3_ppo_ext.language.engines.engine import CompiledTokenEngine
from sb3_ppo_ext.language.engines.family import TokenFamily
from sb3_ppo_ext.language.training.token_update import EagerGradients, TokenGradients
from tests.language import setups, tiny
from tests.language.token_updates import gradients_of, minibatch, outcome, updater
from tests.traced_graphs import Traced, graphs_of, trace_only

KINDS: list[tuple[str, dict[str, Any], int]] = [  # with the number of blocks, the critic's own included
    ("llama", {}, 4),
    ("llama", {"lora": {"r": 2, "init_lora_weights": False}, "value": "branch"}, 5),
    ("gpt2", {"value": "separate"}, 8),
]


def deep(family: str = "llama", layers: int = 4) -> PreTrainedModel:
    """Random, with that many blocks."""
    config = tiny.config(family)
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    built: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return built


def of_blocks(policy: LanguageModelPolicy, graphs: Traced, **options: Any) -> TokenGradients:
    update = updater(policy, **options)
    return TokenGradients(update, BlockGradients(EagerGradients(update), graphs), None)


def calls_of(gradients: TokenGradients) -> list[nn.Module]:
    assert isinstance(gradients.micro_batches, BlockGradients)
    return [block for block, _ in gradients.micro_batches.blocks.calls]


@pytest.mark.parametrize(("family", "policy_kwargs", "count"), KINDS)
def test_the_gradient_is_that_of_autograd(family: str, policy_kwargs: dict[str, Any], count: int) -> None:
    policy, graphs = setups.policy(model=partial(deep, family), **policy_kwargs), Traced()
    gradients, batch = of_blocks(policy, graphs), minibatch(policy)
    eager = outcome(gradients_of(updater(policy)), batch)
    torch.testing.assert_close(outcome(gradients, batch), eager, rtol=1e-4, atol=1e-6)
    assert len(calls_of(gradients)) == count
    assert graphs.calls["gradient of a block"] == count and len(graphs.libraries) == 2


def test_as_many_graphs_for_many_blocks_and_other_lengths_as_for_two_blocks() -> None:
    for layers in (2, 6):
        graphs = Traced()
        policy = setups.policy(model=partial(deep, layers=layers))
        gradients = of_blocks(policy, graphs, micro_batch_tokens=20)
        for rows in (1, 5, 8):
            batch = minibatch(policy, rows=rows)
            eager = outcome(gradients_of(updater(policy, micro_batch_tokens=20)), batch)
            torch.testing.assert_close(outcome(gradients, batch), eager, rtol=1e-4, atol=1e-6)
        assert graphs.made == 1 and len(graphs.libraries) == 2
        again = of_blocks(policy, graphs)
        assert len(calls_of(again)) == layers and graphs.made == 1


def test_products_in_half_precision_are_those_of_autocast() -> None:
    policy, graphs = setups.policy(model=deep, lora={"r": 2}), Traced()
    batch = minibatch(policy)
    full = outcome(gradients_of(updater(policy)), batch)
    policy.lm.compute_dtype = torch.bfloat16
    gradients = of_blocks(policy, graphs)
    eager, found = outcome(gradients_of(updater(policy)), batch), outcome(gradients, batch)
    torch.testing.assert_close(found, eager, rtol=0.02, atol=0.02)
    assert not full.allclose(eager, rtol=0, atol=1e-4)


def test_the_policy_is_itself_again_and_a_missed_call_is_no_silent_one() -> None:
    policy = setups.policy(model=deep)
    gradients = of_blocks(policy, Traced())
    assert isinstance(gradients.micro_batches, BlockGradients)
    compiled = gradients.micro_batches.blocks
    with pytest.raises(RuntimeError, match="was compiled for"), compiled.installed():
        compiled.calls[0][0](torch.zeros(1, 2, 16))
    assert not policy.lm.prepares_mask
    assert not any("forward" in vars(block) for block in blocks_of(policy.lm.trunk))


def test_a_block_unlike_the_others_is_left_to_pytorch() -> None:
    policy, graphs = setups.policy(model=deep), Traced()
    blocks = blocks_of(policy.lm.trunk)
    blocks[1].get_submodule("input_layernorm").variance_epsilon = 0.5  # type: ignore[assignment]  # a number
    gradients, batch = of_blocks(policy, graphs), minibatch(policy)
    assert [block is blocks[1] for block in blocks] == [block not in calls_of(gradients) for block in blocks]
    torch.testing.assert_close(
        outcome(gradients, batch), outcome(gradients_of(updater(policy)), batch), rtol=1e-4, atol=1e-6
    )


def test_blocks_that_only_look_alike_are_refused() -> None:
    policy = setups.policy(model=deep)
    mlp = blocks_of(policy.lm.trunk)[2].get_submodule("mlp")
    forward = mlp.forward
    vars(mlp)["forward"] = lambda states: 100 * forward(states)
    with pytest.raises(CompileError, match="look alike and compute differently"):
        of_blocks(policy, Traced())


def test_what_cannot_be_compiled_by_blocks_says_why() -> None:
    policy = setups.policy(model=partial(deep, layers=1))
    with pytest.raises(CompileError, match="no two blocks of LlamaModel are alike"):
        of_blocks(policy, Traced())
    policy = setups.policy(model=deep)
    vars(blocks_of(policy.lm.trunk)[0])["forward"] = None
    with pytest.raises(CompileError, match="has had its forward method replaced"):
        of_blocks(policy, Traced())


@pytest.fixture
def two_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_kinds, "BLOCKS_AT_ONCE", 1)


def model(**options: Any) -> PPOX:
    torch.manual_seed(0)
    kwargs = {"model": partial(deep, "gpt2", 2), "lora": {"r": 2}}
    return setups.ppox(policy_kwargs=kwargs, ent_coef=0.01, ref_kl_coef=0.1, **options)


def parameters_of(trained: PPOX) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trained.policy.parameters()])


@pytest.mark.usefixtures("two_are_many")
def test_training_saved_and_continued_is_eager_training(tmp_path: Path) -> None:
    eager, compiled = model(compile=False), model(compile=True)
    trace_only(compiled)
    for trained in (eager, compiled):
        trained.set_random_seed(4)
        trained.learn(16)
        trained.save(tmp_path / "model")
        loaded = PPOX.load(tmp_path / "model", env=setups.env(), device="cpu")
        for one in (trained, loaded):
            if trained is compiled:
                trace_only(one)
            one.set_random_seed(5)
            one.learn(16)
        torch.testing.assert_close(parameters_of(loaded), parameters_of(trained), rtol=0, atol=0)
    assert graphs_of(compiled).calls["gradient of a block"]
    # Adam turns rounding of tiny gradients into steps of up to the learning rate, 1e-3.
    torch.testing.assert_close(parameters_of(compiled), parameters_of(eager), rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("two_are_many", "compiler")
def test_training_by_compiled_blocks_is_training_eagerly() -> None:
    eager, compiled = model(compile=False), model(compile=True)
    compiled._engines.actor_refused = True  # a decoder compares itself with the model when it is made
    for trained in (eager, compiled):
        trained.set_random_seed(4)
        trained.learn(32)
    torch.testing.assert_close(parameters_of(compiled), parameters_of(eager), rtol=0, atol=2e-4)
    assert isinstance(compiled._engines.engine, CompiledTokenEngine)
    assert compiled._engines.engine.graphs.made == 1


def test_the_time_to_compile_does_not_grow_with_the_blocks() -> None:
    takes = {layers: savings_of(layers)[1] for layers in (6, 8, 30)}
    assert takes[8] == takes[30] < takes[6]
    assert savings_of(30)[0] == pytest.approx(30 / 8 * savings_of(8)[0])


def savings_of(layers: int) -> tuple[float, float]:
    policy_kwargs = {"model": partial(deep, layers=layers)}
    savings = TokenFamily().savings(setups.ppox(policy_kwargs=policy_kwargs)._run(), 1000, 1000)
    assert savings is not None
    return savings
