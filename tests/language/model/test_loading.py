"""From what the user names as the model to one that can be trained, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.loading import GELUS_BY_TANH, check_model, load_model
from tests.language import tiny
from tests.language.causal_models import TEMPERATURE, core, evaluated


def test_dropout_is_off_even_in_training_mode() -> None:
    model, tokens = core(lora=True), tiny.ragged_tokens()
    model.train()
    assert evaluated(model, tokens).equal(evaluated(model, tokens))


def test_the_fused_activation_is_the_function_it_replaces() -> None:
    written_out = tiny.model("gpt2").eval()
    fused = load_model(written_out)
    ids = torch.arange(2, 10)[None]
    assert not any(isinstance(part, GELUS_BY_TANH) for part in fused.modules())
    assert any(isinstance(part, GELUS_BY_TANH) for part in written_out.modules())  # the given one stays as it is
    torch.testing.assert_close(fused(ids).logits, written_out(ids).logits, rtol=1e-4, atol=1e-4)


def test_a_given_module_is_copied() -> None:
    given = tiny.model()
    loaded = load_model(given)
    with torch.no_grad():
        next(loaded.parameters()).zero_()
    assert next(given.parameters()).any()


def test_models_load_from_a_folder(tmp_path: object) -> None:
    tiny.model().save_pretrained(str(tmp_path))
    loaded = load_model(str(tmp_path))
    assert isinstance(loaded, PreTrainedModel)
    tokens = tiny.ragged_tokens()
    torch.testing.assert_close(
        evaluated(CausalLM(loaded, vocab_size=24, temperature=TEMPERATURE), tokens), evaluated(core(), tokens)
    )


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="tokenizer has 30 tokens, GPT2LMHeadModel only 24"):
        check_model(core(vocab_size=30), eos_token_id=1, sequence_length=8)
    with pytest.raises(ValueError, match="eos_token_id=24"):
        check_model(core(), eos_token_id=24, sequence_length=8)
    with pytest.raises(ValueError, match="may have 65 tokens"):
        check_model(core(), eos_token_id=1, sequence_length=65)
    with pytest.raises(ValueError, match="is a Linear"):
        load_model(torch.nn.Linear(1, 1))


def test_a_model_that_caps_its_logits_is_refused() -> None:
    model = core()
    check_model(model, eos_token_id=1, sequence_length=8)
    model.plain.register_forward_hook(lambda _, __, output: output.__setitem__("logits", output.logits.tanh()))
    with pytest.raises(ValueError, match="scales or caps"):
        check_model(model, eos_token_id=1, sequence_length=8)
