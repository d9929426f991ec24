"""Responses by vLLM, for which a stand-in is here: weights, cache, sleep, and what is refused."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, Request, SamplerError, SequenceRolloutBuffer
from sb3_ppo_ext.language.model.backends import backend_of
from sb3_ppo_ext.language.model.backends.vllm import VLLMGenerator
from sb3_ppo_ext.language.model.sampling_copy import merged_weights
from tests.language import setups, tiny
from tests.language.causal_models import core
from tests.language.model.backends.vllm_stand_in import LLM

Engines = type[LLM]
REQUEST = Request(6, 20, 0.7, (1, 5), 0)  # of 24 tokens the model has


def trained(sampler: Any, rollouts: int = 3, **options: Any) -> PPOX:
    kwargs = {"sampler": sampler, "lora": {"r": 2, "init_lora_weights": False}, "temperature": 0.7}
    model = setups.ppox(policy_kwargs=kwargs, n_steps=1, learning_rate=3e-2, **options)
    return model.learn(8 * rollouts)


def generator() -> VLLMGenerator:
    found = backend_of("vllm", model := core(lora=True))
    assert isinstance(found, VLLMGenerator)
    found.update_weights(merged_weights(model), 1)
    return found


def test_every_rollout_is_drawn_from_the_weights_of_the_moment(vllm: Engines) -> None:
    """The policy scores what vLLM has drawn as vLLM did, after large steps, and though prompts come again."""
    model = trained("vllm")
    (engine,) = vllm.made
    assert engine.calls == ["generate", *["reload_weights", "reset_prefix_cache", "generate"] * 2]
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer) and buffer.sampler_log_probs is not None
    mask = buffer.masks
    np.testing.assert_allclose(buffer.log_probs[mask], buffer.sampler_log_probs[mask], atol=2e-4)
    assert model.logger.name_to_value["sampler/kl"] == pytest.approx(0, abs=1e-4)


def test_an_engine_that_keeps_its_prefixes_is_an_error(vllm: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "keeps_cache", True)
    with pytest.raises(SamplerError, match="not emptied its prefix cache"):
        trained("vllm", rollouts=2)


def test_a_sleeping_engine_is_woken_for_weights_and_for_responses(vllm: Engines) -> None:
    trained({"vllm": {"enable_sleep_mode": True}}, rollouts=2)
    (engine,) = vllm.made
    assert engine.calls == ["generate", "sleep", "wake_up", "reload_weights", "reset_prefix_cache", "generate", "sleep"]


def test_responses_are_of_the_tokens_and_the_end_that_were_requested(vllm: Engines) -> None:
    drawn = generator().generate([[3, 4], [5, 6, 7]] * 8, REQUEST)
    assert drawn.version == 1 and drawn.log_probs is not None
    assert max(map(max, drawn.token_ids)) < 20
    assert all(ids[-1] in (1, 5) or len(ids) == 6 for ids in drawn.token_ids)
    assert not any(token in (1, 5) for ids in drawn.token_ids for token in ids[:-1])
    (engine,) = vllm.made
    assert engine.parameters[0].allowed_token_ids == list(range(20))
    generator().generate([[3]], Request(6, 24, 0.7, (1,), 0))
    assert vllm.made[-1].parameters[0].allowed_token_ids is None  # a mask that costs something, and masks nothing


def test_a_seed_draws_the_same_responses(vllm: Engines) -> None:
    backend, drawn = generator(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(backend.generate([[3, 4]] * 8, REQUEST).token_ids)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({tuple(ids) for ids in drawn[0]}) > 1  # a seed for each


def test_a_model_that_is_only_loaded_starts_no_engine(vllm: Engines) -> None:
    model = setups.ppox(policy_kwargs={"sampler": "vllm"})
    observation: Any = setups.env().reset()
    model.predict(observation)
    assert not vllm.made
    assert isinstance(copy.deepcopy(model.policy), LanguageModelPolicy)


def test_without_the_package_the_error_has_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r'pip install vllm\n.*"continuous_batching" needs no other package'):
        setups.policy(sampler="vllm")


def test_options_that_cannot_be_are_refused(vllm: Engines) -> None:
    with pytest.raises(ValueError, match="logprobs_mode is not an option"):
        setups.policy(sampler={"vllm": {"logprobs_mode": "raw_logprobs"}})
    with pytest.raises(ValueError, match=r"vllm 0.0.stand.in does not take these options.*'max_length'"):
        trained({"vllm": {"max_length": 3}})


@pytest.mark.parametrize("choice", [{"vlm": {}}, {"vllm": {}, "continuous_batching": {}}, {"vllm": 3}])
def test_a_backend_has_one_name_and_named_options(vllm: Engines, choice: Any) -> None:
    with pytest.raises(ValueError, match="sampler="):
        setups.policy(sampler=choice)


def test_the_weights_are_those_with_the_adapter(vllm: Engines) -> None:
    model = core(lora=True)
    backend = backend_of("vllm", model)
    assert isinstance(backend, VLLMGenerator)
    backend.update_weights(merged_weights(model), 7)
    prompt = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(vllm.made[0].model(prompt).logits, model.plain(prompt).logits, rtol=1e-4, atol=1e-4)
    assert vllm.made[0].model.config.vocab_size == tiny.VOCABULARY
