"""The best of n responses, by a scorer and by the critic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.language import setups, tiny
from tests.language.words import tokenizer


def test_the_best_response_is_the_one_with_the_highest_score() -> None:
    found = setups.policy().best_of_n(setups.PROMPTS, 6, setups.low_ids, batch_size=5)
    scores = np.array([setups.low_ids([], responses) for responses in found.all_responses])
    assert found.all_scores.tolist() == scores.tolist() and scores.shape == (4, 6)
    assert found.scores.tolist() == scores.max(axis=1).tolist()
    assert setups.low_ids([], found.responses) == found.scores.tolist()
    assert found.kl == pytest.approx(np.log(6) - 5 / 6)


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_without_a_scorer_the_critic_ranks_by_the_last_token(value: str) -> None:
    policy = setups.policy(value=value)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.value_parameters():
            parameter.add_(torch.randn_like(parameter))
    torch.manual_seed(1)
    found = policy.best_of_n([[3, 4], [5, 6]], 3)
    torch.manual_seed(1)
    prompts = torch.tensor([[3, 4]] * 3 + [[5, 6]] * 3)
    token, values, _ = policy({"input_ids": prompts, "attention_mask": torch.ones_like(prompts)})
    last = policy.responses.mask_of(token.numpy()).sum(-1) - 1
    expected = values[torch.arange(6), torch.from_numpy(last)].view(2, 3)
    assert found.all_scores == pytest.approx(expected.numpy(), abs=1e-6)
    assert found.scores == pytest.approx(expected.max(dim=1).values.numpy(), abs=1e-6)


def test_texts_are_answered_in_text() -> None:
    def longest(prompts: list[str], responses: list[str], bonus: list[float]) -> list[float]:
        return [len(response) + more for response, more in zip(responses, bonus, strict=True)]

    found = setups.policy().best_of_n(
        ["go left", "stay"], 2, longest, tokenizer=tokenizer(), columns={"bonus": [0, 99]}
    )
    assert all(isinstance(response, str) for response in found.responses) and found.scores[1] >= 99


def test_bad_numbers_are_refused() -> None:
    policy: Any = setups.policy(pad=tiny.PAD)
    with pytest.raises(ValueError, match="n=0"):
        policy.best_of_n([[3]], 0, setups.low_ids)


def test_a_policy_without_a_critic_needs_a_scorer() -> None:
    policy = setups.policy(value="none")
    assert len(policy.best_of_n([[3]], 2, setups.low_ids).responses) == 1
    with pytest.raises(ValueError, match='value="none" has none: pass a scorer'):
        policy.best_of_n([[3]], 2)
