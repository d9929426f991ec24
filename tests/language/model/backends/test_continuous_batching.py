"""Responses by the continuous batching of transformers, itself: whose tokens they are, and what training keeps."""

from __future__ import annotations

import gc
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext.language import Generated, Request, SamplerError, SequenceRolloutBuffer
from sb3_ppo_ext.language.model.backends import backend_of
from sb3_ppo_ext.language.model.backends.continuous_batching import ContinuousBatchingGenerator, fast_collections
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.sampling_copy import merged_weights
from tests.language import setups, tiny
from tests.language.causal_models import core

PROMPTS = [[3, 4], [5, 6, 7, 8, 9], [8]] * 4
REQUEST = Request(6, 20, 0.7, (1, 5), 0)  # of 24 tokens the model has


def backend_over(model: CausalLM) -> ContinuousBatchingGenerator:
    backend = backend_of("continuous_batching", model)
    assert isinstance(backend, ContinuousBatchingGenerator)
    backend.update_weights(merged_weights(model), 1)
    return backend


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_responses_and_log_probabilities_are_the_models_with_its_adapter(family: str) -> None:
    model = core(family, lora=True, temperature=0.7, vocab_size=20)
    drawn = backend_over(model).generate(PROMPTS, REQUEST)
    assert drawn.log_probs is not None and drawn.version == 1
    assert all(ids[-1] in (1, 5) or len(ids) == 6 for ids in drawn.token_ids)
    assert not any(token in (1, 5) for ids in drawn.token_ids for token in ids[:-1])
    for prompt, ids, log_probs in zip(PROMPTS, drawn.token_ids, drawn.log_probs, strict=True):
        whole = torch.tensor([prompt + ids])
        with torch.no_grad():
            states = model.hidden(whole, torch.ones_like(whole))[0, len(prompt) - 1 : -1]
            expected = model.logits(states).log_softmax(-1)[range(len(ids)), ids]
        np.testing.assert_allclose(log_probs, expected.numpy(), atol=1e-4)


def test_the_weights_are_the_trained_ones_without_a_copy_and_keep_their_gradients() -> None:
    whole = core()  # all of it is trained
    assert not any(parameter.requires_grad for parameter in backend_over(whole).model.parameters())
    assert all(parameter.requires_grad for parameter in whole.parameters())
    model = core(lora=True)
    backend = backend_over(model)
    words, own = (plain.get_parameter("transformer.wte.weight") for plain in (model.plain, backend.model))
    assert words.data_ptr() == own.data_ptr() and own is not words
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and not any(parameter.requires_grad for parameter in backend.model.parameters())
    assert not any("lora" in name for name, _ in backend.model.named_parameters())
    before = backend.generate(PROMPTS, REQUEST).log_probs
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.3)
    backend.update_weights(merged_weights(model), 2)
    after = backend.generate(PROMPTS, REQUEST)
    assert after.version == 2 and after.log_probs != before
    assert model.plain.config._attn_implementation == "sdpa"


def test_buffers_follow_a_policy_that_is_moved_after_it_was_made() -> None:
    model = core("llama")
    backend = backend_over(model)
    assert list(backend.model.buffers())  # rotary frequencies
    backend.update_weights(((name, weight.to("meta")) for name, weight in merged_weights(model)), 2)
    assert {tensor.device.type for tensor in (*backend.model.buffers(), *backend.model.parameters())} == {"meta"}
    assert {tensor.device.type for tensor in model.plain.buffers()} == {"cpu"}


def test_a_seed_draws_the_same_responses_and_the_generator_moves_by_one_number() -> None:
    backend, drawn, after = backend_over(core()), [], []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(backend.generate(PROMPTS, REQUEST))
        after.append(int(torch.randint(2**31 - 1, ())))
    assert drawn[0] == drawn[1] and drawn[0].token_ids != drawn[2].token_ids
    torch.manual_seed(3)
    assert [int(torch.randint(2**31 - 1, ())) for _ in range(2)][1] == after[0]


def test_a_training_is_on_the_policys_log_probabilities() -> None:
    kwargs: dict[str, Any] = {"sampler": "continuous_batching", "lora": {"r": 2}, "temperature": 0.7}
    model = setups.ppox(policy_kwargs=kwargs, n_steps=1, learning_rate=3e-2)
    model.learn(16)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer) and buffer.sampler_log_probs is not None
    np.testing.assert_allclose(buffer.log_probs[buffer.masks], buffer.sampler_log_probs[buffer.masks], atol=2e-4)
    log = model.logger.name_to_value
    assert log["sampler/effective_fraction"] == pytest.approx(1, abs=1e-4)


def test_a_model_that_it_cannot_run_is_refused_with_the_reason() -> None:
    """GPT-NeoX hands its cache less than the paged cache of transformers needs; should that be mended, it runs."""
    model = CausalLM(tiny.model("pythia"), vocab_size=24, temperature=1.0)
    try:
        backend = backend_over(model)
    except ValueError as error:
        text = str(error)
        assert "cannot run a GPTNeoXForCausalLM" in text and "update()" in text and 'sampler="auto"' in text
    else:
        assert isinstance(backend.generate([[3]], REQUEST), Generated)


def test_a_request_that_fails_is_an_error_and_no_shorter_response() -> None:
    backend = backend_of({"continuous_batching": {"num_blocks": 2, "page_size": 4}}, core())
    assert backend is not None
    with pytest.raises(SamplerError, match="continuous batching of transformers has failed: "):
        backend.generate([[3] * 20], REQUEST)  # takes 5 blocks


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValueError, match="no argument 'page'; did you mean 'page_size'"):
        setups.policy(sampler={"continuous_batching": {"page": 3}})
    with pytest.raises(ValueError, match="no argument 'seed'"):
        setups.policy(sampler={"continuous_batching": {"seed": 3}})


def test_objects_that_the_user_has_frozen_stay_so() -> None:
    gc.freeze()
    try:
        with fast_collections():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
    with fast_collections():
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0


def test_the_policy_takes_it_by_name_with_options() -> None:
    options = {"continuous_batching": {"page_size": 16}}
    policy = setups.policy(sampler=options, model=partial(tiny.model, "llama"))
    observation = {"input_ids": torch.tensor([[0, 3, 4]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    assert policy.sampler is not None
    response = policy.sampler.respond(observation["input_ids"], observation["attention_mask"], policy.request())
    assert response.mask.any() and torch.isfinite(response.log_prob).all()
