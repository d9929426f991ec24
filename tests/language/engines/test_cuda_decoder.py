"""Language models as a GPU runs them, rehearsed on the CPU: a token is a recording over a cache that stays in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.engines.cuda import engine
from sb3_ppo_ext.engines.cuda.graph_cache import DeviceGraphs
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.selection import CompileWarning
from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.engines.compiled import CompiledGradients
from sb3_ppo_ext.language.engines.cuda_decoder import RecordedDecoder
from sb3_ppo_ext.language.engines.engine import CompiledTokenEngine
from sb3_ppo_ext.language.model import causal_lm as model_module
from sb3_ppo_ext.language.training.token_update import EagerGradients, TokenGradients
from tests.engines.cuda.rehearsal import Rehearsed
from tests.language import setups, tiny
from tests.language.token_updates import KNOBS, gradients_of, minibatch, outcome, updater


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.RECORDERS, "cpu", Rehearsed)
    monkeypatch.setattr(Rehearsed, "recorded", 0)


def prompts(shift: int = 0) -> dict[str, Tensor]:
    prompt, mask = tiny.ragged_prompts()
    mask[:, -1] = True
    return {"input_ids": (prompt + shift) % tiny.VOCABULARY, "attention_mask": mask}


def responses(policy: LanguageModelPolicy, observation: dict[str, Tensor], **options: Any) -> tuple[Tensor, ...]:
    torch.manual_seed(3)
    found: tuple[Tensor, ...] = policy(observation, **options)
    return found


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("value", ["shared", "branch", "separate"])
def test_the_same_tokens_from_one_recording_for_all_rollouts(family: str, value: str) -> None:
    policy = setups.policy(model=partial(tiny.model, family), value=value)
    decoder_of = partial(RecordedDecoder, policy=policy, graphs=DeviceGraphs("cpu"))
    for shift in (0, 5, 11):
        eager = responses(policy, prompts(shift))
        recorded = responses(policy, prompts(shift), decoder_of=decoder_of)
        assert eager[0].equal(recorded[0])
        torch.testing.assert_close(torch.stack(eager[1:]), torch.stack(recorded[1:]), rtol=0, atol=1e-4)
        with torch.no_grad():  # a step of the optimizer, which a recording is to see
            for parameter in policy.lm.parameters():
                parameter.mul_(1.05)
    assert Rehearsed.recorded == 1


def test_weights_in_another_place_are_recorded_anew() -> None:
    policy = setups.policy()
    decoder_of = partial(RecordedDecoder, policy=policy, graphs=DeviceGraphs("cpu"))
    responses(policy, prompts(), decoder_of=decoder_of)
    with torch.no_grad():
        for parameter in policy.lm.parameters():
            parameter.data = parameter.data * 1.5
    assert responses(policy, prompts())[0].equal(responses(policy, prompts(), decoder_of=decoder_of)[0])
    assert Rehearsed.recorded == 2


def test_what_a_nan_left_in_the_cache_is_gone_with_the_next_prompts() -> None:
    policy = setups.policy()
    decoder_of = partial(RecordedDecoder, policy=policy, graphs=DeviceGraphs("cpu"))
    responses(policy, prompts(), decoder_of=decoder_of)
    (recorded,) = decoder_of.keywords["graphs"].recordings.known.values()
    for pair in recorded.cache:
        for tensor in pair:
            tensor.fill_(torch.nan)
    assert responses(policy, prompts(), decoder_of=decoder_of)[0].equal(responses(policy, prompts())[0])


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_logits_are_computed_piece_by_piece_in_a_graph_too(
    lora: dict[str, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", 7 * tiny.VOCABULARY)
    policy = setups.policy(lora=lora)
    batch = minibatch(policy)
    whole = outcome(gradients_of(updater(policy)), batch)
    compiled = CompiledGradients(EagerGradients(updater(policy)), graphs := DeviceGraphs("cpu"), 6)
    compiled.prepare(batch, KNOBS)
    torch.testing.assert_close(
        outcome(TokenGradients(compiled.update, compiled, None), batch), whole, rtol=1e-4, atol=1e-5
    )
    assert graphs.made == 1


def test_a_training_has_one_recording() -> None:
    model = setups.ppox(compile=True, policy_kwargs={"lora": {"r": 2}, "value": "branch"})
    model.learn(32)
    model.learn(32, reset_num_timesteps=False)
    compiled_engine = model._engines.engine
    assert isinstance(compiled_engine, CompiledTokenEngine) and isinstance(compiled_engine.graphs, DeviceGraphs)
    assert Rehearsed.recorded == 1 and not (model._engines.update_refused or model._engines.actor_refused)


class Refusing(Rehearsed):
    def record(self, run: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
        raise CompileError("it cannot be recorded as a CUDA graph")


def test_what_cannot_be_recorded_is_said_and_done_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.RECORDERS, "cpu", Refusing)
    with pytest.raises(ValueError, match="compile=True: it cannot be recorded as a CUDA graph; pass compile=False"):
        setups.ppox(compile=True).learn(16)
    model = setups.ppox()
    monkeypatch.setattr(model._family, "savings", lambda *_: (1e9, 1.0))
    with pytest.warns(CompileWarning, match="acting is not compiled: it cannot be recorded") as told:
        model.learn(32)
    assert len([one for one in told if one.category is CompileWarning]) == 1
    assert isinstance(model._engines.engine, CompiledTokenEngine)
    assert model._engines.engine.graphs.made == 1  # the gradient's


def test_a_model_in_half_precision_is_for_gpus() -> None:
    model = setups.ppox(compile=True, policy_kwargs={"dtype": "bfloat16"})
    with pytest.raises(ValueError, match="computes in bfloat16; float32 is compiled on cpu"):
        model.learn(16)
