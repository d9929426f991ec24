from __future__ import annotations

import pytest
import torch

from sb3_ppo_ext.language.model.drawing import BLOCK, draw, inverse_cdf

ENDS = (0.0, 1 - 2.0**-53)  # of what torch.rand draws


def test_the_token_is_where_the_running_sum_exceeds_the_noise() -> None:
    weight = torch.tensor([1.0, 3.0, 0.0, 4.0])  # of a total of 8: until 1/8 the first, until 1/2 the second
    noise = torch.tensor([0.0, 0.124, 0.126, 0.49, 0.51, ENDS[1]], dtype=torch.float64)
    token, total = inverse_cdf(weight.expand(6, 4), noise)
    assert token.tolist() == [0, 0, 1, 1, 3, 3]
    assert total.tolist() == [8.0] * 6


@pytest.mark.parametrize("vocabulary", [3, BLOCK, BLOCK + 1, 49_152])
def test_evenly_spread_noise_draws_every_token_as_often_as_it_is_likely(vocabulary: int) -> None:
    """Of n evenly spread numbers, those between two values of the running sum are n p to less than one."""
    torch.manual_seed(0)
    log_p = (3 * torch.randn(vocabulary)).log_softmax(-1)
    n, count = 2000, torch.zeros(vocabulary)
    for noise in ((torch.arange(n, dtype=torch.float64) + 0.5) / n).split(500):
        token, log_prob = draw(log_p.expand(len(noise), -1), noise)
        count += token.bincount(minlength=vocabulary)
        torch.testing.assert_close(log_prob, log_p[token], rtol=0, atol=1e-5)
    assert (count - n * log_p.exp()).abs().max() < 1.01


@pytest.mark.parametrize("noise", ENDS)
def test_what_has_no_probability_is_never_drawn(noise: float) -> None:
    logits = torch.full((3, 3 * BLOCK), -torch.inf)
    for row, index in enumerate((0, BLOCK, 3 * BLOCK - 1)):
        logits[row, index] = 0.0
    token, log_prob = draw(logits, torch.full((3,), noise, dtype=torch.float64))
    assert token.tolist() == [0, BLOCK, 3 * BLOCK - 1] and log_prob.tolist() == [0.0] * 3


def test_the_likeliest_without_noise_and_nan_stays_nan() -> None:
    token, log_prob = draw(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), None)
    assert token[0] == 1 and log_prob.isnan().tolist() == [False, True]
    assert draw(torch.full((1, 2), torch.nan), torch.tensor([0.5], dtype=torch.float64))[1].isnan()
