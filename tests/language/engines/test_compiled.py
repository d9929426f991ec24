"""Gradient and decoder of a language model as graphs are the eager ones up to rounding; what cannot be is said so.

Most of it is shown of the traced graphs, which are what is compiled; one training goes through the compiler.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sb3_ppo_ext.engines.rows import COSTS
from sb3_ppo_ext.engines.selection import CompileWarning
from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.engines import family as token_family
from sb3_ppo_ext.language.engines.compiled import CompiledDecoder, CompiledGradients
from sb3_ppo_ext.language.engines.engine import CompiledTokenEngine
from sb3_ppo_ext.language.engines.traced_tokens import COMPILED_DTYPES, traceable
from sb3_ppo_ext.language.model.tokens import prepared_mask
from sb3_ppo_ext.language.training.micro_batches import lengths_of
from sb3_ppo_ext.language.training.token_update import EagerGradients, TokenGradients
from sb3_ppo_ext.objective.batch import Minibatch
from tests.engines.other_device import ELSEWHERE, elsewhere
from tests.language import setups, tiny
from tests.language.tiny import one_block
from tests.language.token_updates import KNOBS, gradients_of, minibatch, outcome, updater
from tests.traced_graphs import Traced

CRITICS: list[dict[str, Any]] = [{}, {"lora": {"r": 2}, "value": "branch"}, {"value": "separate"}]
LONG = 10_000_000


def through_graphs(
    policy: LanguageModelPolicy, rows: int, batch: Minibatch, **options: Any
) -> tuple[CompiledGradients, Traced]:
    graphs = Traced()
    compiled = CompiledGradients(EagerGradients(updater(policy, **options)), graphs, rows)
    compiled.prepare(batch, KNOBS)
    return compiled, graphs


def compiled_gradients(compiled: CompiledGradients, *, ratio_check: Any = None) -> TokenGradients:
    return TokenGradients(compiled.update, compiled, ratio_check)


@pytest.mark.parametrize("policy_kwargs", [*CRITICS, {"model": partial(tiny.model, "llama")}])
def test_the_gradient_is_that_of_autograd(policy_kwargs: dict[str, Any]) -> None:
    policy = setups.policy(**policy_kwargs)
    batch = minibatch(policy)
    compiled, graphs = through_graphs(policy, 6, batch)
    eager = outcome(gradients_of(updater(policy)), batch)
    torch.testing.assert_close(outcome(compiled_gradients(compiled), batch), eager, rtol=1e-4, atol=1e-5)
    assert graphs.calls == {"gradient of tokens": 1}


def test_parts_of_a_fixed_size_add_up_to_the_minibatch() -> None:
    policy = setups.policy()
    batch = minibatch(policy, rows=7)  # one part of 4, and one of 3 filled up with a row of padding
    compiled, graphs = through_graphs(policy, 4, batch)
    deviations: list[float] = []

    def check(_: Minibatch, deviation: float) -> None:
        deviations.append(deviation)

    eager = outcome(gradients_of(updater(policy), check), batch)
    found = outcome(compiled_gradients(compiled, ratio_check=check), batch)
    torch.testing.assert_close(found, eager, rtol=1e-4, atol=1e-5)
    assert graphs.calls == {"gradient of tokens": 2}
    assert deviations[0] == pytest.approx(deviations[1], abs=1e-4) and deviations[1] > 0.3


def test_parts_are_made_without_waiting_for_the_device() -> None:
    policy = setups.policy()
    batch = minibatch(policy, rows=7)
    lengths = lengths_of(batch)
    everything = {
        loss_mean: through_graphs(policy, 4, batch, loss_mean=loss_mean)[0]
        for loss_mean in ("token", "response", "length")
    }
    with FakeTensorMode(allow_non_fake_inputs=True):  # whose numbers nobody can read
        there = elsewhere(batch)._replace(lengths=lengths)
        for loss_mean in ("token", "response", "length"):
            compiled = everything[loss_mean]
            given = [compiled._inputs(micro_batch, KNOBS) for micro_batch in compiled.split(there)]
            assert len(given) == 2 and given[0]["share"].device.type == ELSEWHERE
        with pytest.raises(RuntimeError, match="numpy"):
            lengths_of(there._replace(lengths=None))


def test_mostly_padding_is_left_to_autograd() -> None:
    policy = setups.policy(prompt=6, response=5)
    batch = minibatch(policy)
    compiled, graphs = through_graphs(policy, 6, batch)
    assert batch.mask is not None
    short = batch._replace(mask=batch.mask & (torch.arange(5) < 1))  # 6 + 1 slots a row, where the graph has 11
    eager = outcome(gradients_of(updater(policy)), short)
    torch.testing.assert_close(outcome(compiled_gradients(compiled), short), eager, rtol=0, atol=0)
    assert not graphs.calls


def test_short_responses_have_a_graph_of_half_the_length() -> None:
    policy = setups.policy(prompt=6, response=5)
    batch = minibatch(policy)
    assert batch.mask is not None
    short = batch._replace(mask=batch.mask & (torch.arange(5) < 3))
    compiled, graphs = through_graphs(policy, 6, short)
    eager = outcome(gradients_of(updater(policy)), short)
    torch.testing.assert_close(outcome(compiled_gradients(compiled), short), eager, rtol=1e-4, atol=1e-5)
    assert graphs.calls == {"gradient of tokens": 1}
    assert list(compiled.calls) == [3]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("value", ["shared", "separate"])
def test_the_decoder_draws_the_same_tokens(family: str, value: str) -> None:
    policy, graphs = setups.policy(model=partial(tiny.model, family), value=value), Traced()
    prompt, mask = tiny.ragged_prompts()
    prompt, mask = torch.cat((prompt[:, :2] * 0, prompt[:, 2:]), 1), mask & (torch.arange(6) >= 2)
    mask[:, -1] = True
    found = []
    for options in ({}, {"decoder_of": partial(CompiledDecoder, policy=policy, graphs=graphs)}):
        torch.manual_seed(3)
        found.append(policy({"input_ids": prompt, "attention_mask": mask}, **options))
    eager, compiled = found
    assert eager[0].equal(compiled[0])
    torch.testing.assert_close(torch.stack(eager[1:]), torch.stack(compiled[1:]), rtol=0, atol=1e-4)
    assert graphs.calls["decoding"] == 4  # of 5 tokens all but the first, which takes in the prompt


def test_padding_attends_to_itself_alone() -> None:
    mask = torch.tensor([[False, True, True]])
    expected = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 1]]).bool()
    assert prepared_mask(mask, 3).equal(expected[None, None])
    assert prepared_mask(mask, 1).equal(mask[None, None])


def test_a_policy_is_itself_again_after_a_failed_trace() -> None:
    policy = setups.policy(value="separate")
    with pytest.raises(ZeroDivisionError), traceable(policy, {}):
        assert policy.lm.prepares_mask and policy.lm.plain.config._attn_implementation == "eager"
        raise ZeroDivisionError
    assert not policy.lm.prepares_mask and policy.lm.plain.config._attn_implementation == "sdpa"


@pytest.mark.slow
def test_training_compiled_is_training_eagerly() -> None:
    trained = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = setups.ppox(
            compile=compiled, policy_kwargs={"model": one_block}, ent_coef=0.01, ref_kl_coef="linear:0.1:0"
        )
        model.learn(16)
        with torch.no_grad():  # as set_parameters() does: the graphs are to see it
            model.policy.get_parameter("critic.head.bias").add_(1.0)
        model.learn(32, reset_num_timesteps=False)
        trained.append(torch.cat([parameter.flatten() for parameter in model.policy.parameters()]))
        if compiled:
            assert isinstance(model._engines.engine, CompiledTokenEngine)
            assert model._engines.engine.graphs.made == 2  # gradient and decoder, once each
    # Adam turns rounding of tiny gradients into steps of up to the learning rate, 1e-3.
    torch.testing.assert_close(*trained, rtol=0, atol=2e-4)


def test_a_model_that_cannot_be_compiled_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    half = {"model": partial(tiny.model, "gpt2"), "dtype": "bfloat16"}
    with pytest.raises(
        ValueError, match="compile=True: GPT2LMHeadModel computes in bfloat16; float32 is compiled on cpu"
    ):
        setups.ppox(compile=True, policy_kwargs=half).learn(16)
    model = setups.ppox(policy_kwargs=half)
    monkeypatch.setattr(model._family, "savings", lambda *_: (1e9, 1.0))
    with pytest.warns(CompileWarning, match="is not compiled: GPT2LMHeadModel computes in bfloat16") as told:
        model.learn(48)
    assert len([one for one in told if one.category is CompileWarning]) == 1


def test_auto_compiles_long_trainings_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    model = setups.ppox(verbose=1)
    model._setup_learn(32)
    assert "PPOX trains eagerly: 16 minibatches are planned, which would not repay" in capsys.readouterr().out
    model._setup_learn(LONG)
    assert "PPOX trains compiled" in capsys.readouterr().out


def test_where_language_models_are_compiled_it_is_known_what_that_saves() -> None:
    assert set(token_family.COSTS) == set(COMPILED_DTYPES) == set(COSTS)
