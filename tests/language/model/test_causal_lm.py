from __future__ import annotations

import pytest
import torch

from sb3_ppo_ext.language.model import causal_lm as model_module
from sb3_ppo_ext.language.model.causal_lm import CausalLM, entropy_of
from sb3_ppo_ext.language.model.critics import last_block
from sb3_ppo_ext.language.model.generation import Response, generate
from sb3_ppo_ext.language.model.loading import as_reference, frozen_copy
from sb3_ppo_ext.language.model.tokens import RowLayout, Tokens, positions
from tests.language import tiny
from tests.language.causal_models import TEMPERATURE, core, evaluated


def sampled(model: CausalLM, rows: int = 24, length: int = 12) -> tuple[Tokens, Response]:
    torch.manual_seed(1)
    prompt, mask = tiny.ragged_prompts(rows)
    response = generate(model, prompt, mask, max_new_tokens=length, eos_token_id=tiny.EOS, pad_token_id=tiny.PAD)
    return Tokens(prompt, mask, response.token, response.mask), response


def test_positions_do_not_count_padding_on_the_left() -> None:
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    assert positions(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_log_probs_are_those_of_the_plain_model_on_each_row_without_padding(family: str) -> None:
    model = core(family)
    tokens = tiny.ragged_tokens()
    log_prob = evaluated(model, tokens)
    for row in range(len(tokens.prompt)):
        prompt, response = tokens.prompt[row][tokens.prompt_mask[row]], tokens.response[row][tokens.mask[row]]
        logits = model.plain(input_ids=torch.cat((prompt, response))[None]).logits[0, len(prompt) - 1 : -1]
        expected = torch.distributions.Categorical(logits=logits / TEMPERATURE).log_prob(response)
        torch.testing.assert_close(log_prob[row][tokens.mask[row]], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sampled_log_probs_are_those_of_teacher_forcing(family: str, lora: bool) -> None:
    model = core(family, lora=lora)
    tokens, response = sampled(model)
    assert len(set(tokens.mask.sum(-1).tolist())) > 1  # ragged
    torch.testing.assert_close(response.log_prob, evaluated(model, tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_states_that_are_not_used_change_nothing(family: str) -> None:
    model = core(family)
    ids, mask = tiny.ragged_tokens().joined()
    whole = model.hidden(ids, mask)
    widths: list[int] = []
    mlp = last_block(model.trunk).get_submodule("mlp")
    mlp.register_forward_hook(lambda _, given, output: widths.append(given[0].shape[1]))
    torch.testing.assert_close(model.hidden(ids, mask, RowLayout(3))[:, 3:], whole[:, 3:])
    assert widths == [ids.shape[1] - 3]
    torch.testing.assert_close(model.hidden(ids, mask), whole)  # the hooks are gone


def test_a_response_ends_with_its_first_end_of_text() -> None:
    tokens, _ = sampled(core(), rows=32, length=12)
    for ids, mask in zip(tokens.response, tokens.mask, strict=True):
        length = int(mask.sum())
        assert mask[:length].all() and tiny.EOS not in ids[: length - 1]
        assert length == 12 or ids[length - 1] == tiny.EOS
        assert (ids[length:] == tiny.PAD).all()


def test_generation_stops_when_all_rows_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = core(), 0

    def ending(hidden: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.eye(24)[[tiny.EOS] * len(hidden)] * 99

    monkeypatch.setattr(model, "logits", ending)
    tokens, _ = sampled(model, length=50)
    assert calls == 1 and tokens.mask.sum(-1).tolist() == [1] * 24


def test_deterministic_responses_are_greedy() -> None:
    model = core()
    prompt, mask = tiny.ragged_prompts(1)
    response = generate(
        model, prompt, mask, max_new_tokens=4, eos_token_id=tiny.EOS, pad_token_id=tiny.PAD, deterministic=True
    )
    ids = prompt[mask]
    for token in response.token[response.mask]:
        assert token == model.plain(input_ids=ids[None]).logits[0, -1].argmax()
        ids = torch.cat((ids, token[None]))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_more_padding_and_what_stands_in_it_change_nothing(family: str, side: str) -> None:
    model, tokens = core(family), tiny.ragged_tokens()
    noise, no = torch.full((4, 3), 23), torch.zeros(4, 3, dtype=torch.bool)
    if side == "left":
        padded = tokens._replace(
            prompt=torch.cat((noise, tokens.prompt), 1), prompt_mask=torch.cat((no, tokens.prompt_mask), 1)
        )
    else:
        padded = tokens._replace(response=torch.cat((tokens.response, noise), 1), mask=torch.cat((tokens.mask, no), 1))
    torch.testing.assert_close(evaluated(model, padded)[:, :5], evaluated(model, tokens), rtol=0, atol=2e-5)


def test_trimmed_leaves_out_only_padding() -> None:
    tokens = tiny.ragged_tokens()
    no = torch.zeros(4, 2, dtype=torch.bool)
    wide = Tokens(
        torch.cat((torch.zeros(4, 2, dtype=torch.long), tokens.prompt), 1),
        torch.cat((no, tokens.prompt_mask), 1),
        torch.cat((tokens.response, torch.zeros(4, 2, dtype=torch.long)), 1),
        torch.cat((tokens.mask, no), 1),
    )
    trimmed, longest = wide.trimmed(), int(tokens.mask.sum(-1).max())
    assert trimmed.prompt.equal(tokens.prompt) and trimmed.response.equal(tokens.response[:, :longest])


def test_log_probs_and_gradients_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = core(), tiny.ragged_tokens()

    def outcome() -> list[torch.Tensor]:
        model.zero_grad()
        log_prob = evaluated(model, tokens)
        log_prob.sum().backward()
        return [log_prob.detach(), *(parameter.grad.clone() for parameter in model.parameters())]  # type: ignore[union-attr]  # all have one

    whole = outcome()
    monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", 3 * 24)  # three rows at a time
    for one, other in zip(whole, outcome(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_entropy_ignores_impossible_tokens() -> None:
    log_p = torch.tensor([[0.5, 0.5, 0.0]]).log()
    torch.testing.assert_close(entropy_of(log_p), torch.tensor([2.0]).log())


def test_only_tokens_of_the_tokenizer_are_sampled() -> None:
    model = core(vocab_size=9)  # the model has 24 rows
    tokens, response = sampled(model, rows=16)
    assert tokens.response.max() < 9
    torch.testing.assert_close(response.log_prob, evaluated(model, tokens), rtol=0, atol=2e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_model_before_training(lora: bool) -> None:
    model, tokens = core(lora=lora), tiny.ragged_tokens()
    kept = None if lora else frozen_copy(model.plain, vocab_size=24, temperature=TEMPERATURE)
    expected = evaluated(CausalLM(tiny.model().eval(), vocab_size=24, temperature=TEMPERATURE), tokens)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
        with as_reference(model, kept) as reference:
            torch.testing.assert_close(evaluated(reference, tokens), expected)
        assert (evaluated(model, tokens) - expected).abs().max() > 0.1
