"""Prompts that occur several times, and rows that have ended: less is computed, and the responses are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.generation import Decoder, Response, generate
from tests.language import tiny


class Recording(Decoder):
    rows: list[int]

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.rows.append(len(ids))
        return super()._hidden(ids, mask)


class FixedShape(Recording):
    shares_prompts = compacts = False


def responses(kind: type[Recording], family: str = "gpt2", **options: Any) -> tuple[Response, list[int]]:
    model = CausalLM(tiny.model(family).eval(), vocab_size=tiny.VOCABULARY, temperature=2.0)
    prompt, mask = tiny.ragged_prompts(3)
    index = torch.tensor([0, 1, 1, 2] * 4)
    kind.rows = []
    torch.manual_seed(1)
    settings: dict[str, Any] = {"max_new_tokens": 9, "eos_token_id": [tiny.EOS, 5, 6, 7], "pad_token_id": tiny.PAD}
    found = generate(
        model, prompt[index], mask[index], decoder_of=kind, value_of=lambda hidden: hidden[:, 0], **settings, **options
    )
    return found, kind.rows


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_responses_are_those_of_all_rows_computed(family: str) -> None:
    fewer, rows = responses(Recording, family)
    every, every_rows = responses(FixedShape, family)
    assert every_rows == [16] * len(rows)
    assert rows[0] == 3 and rows[1] == 16  # prompts once each, then every response
    assert rows[-1] <= 8
    for found, expected in zip(fewer, every, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_rows_are_left_out_once_half_have_ended() -> None:
    response, rows = responses(Recording)
    going = [16 - int((~response.mask[:, step]).sum()) for step in range(len(rows))]
    expected, computed = [3], 16
    for left in going[1:]:
        computed = left if 2 * left <= computed else computed
        expected.append(computed)
    assert rows == expected
