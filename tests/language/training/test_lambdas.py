"""lambda of its own for the value function, by the length of a response, and by turn, on numbers set by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext.language import ResponseSpace, SequenceRolloutBuffer, prompt_space
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS
from sb3_ppo_ext.language.training.credit import length_lambdas, token_advantages, turn_lambdas
from tests.language import setups

EOS = 1


def buffer_of(**options: Any) -> SequenceRolloutBuffer:
    """A response of three tokens and one of two, scores 4 and 8, all values 1; gamma = 1, lambda = 0.5."""
    buffer = SequenceRolloutBuffer(
        1, prompt_space(24, 2), ResponseSpace(24, 3, EOS, 0), "cpu", gae_lambda=0.5, gamma=1, n_envs=2, **options
    )
    observation = {INPUT_IDS: np.full((2, 2), 7), ATTENTION_MASK: np.ones((2, 2), np.int8)}
    action = np.array([[4, 5, 6], [4, EOS, 0]])
    buffer.add(observation, action, np.array([4.0, 8.0]), np.ones(2), torch.ones(2, 3), torch.zeros(2, 3))
    buffer.compute_returns_and_advantage(torch.zeros(2), np.ones(2))
    return buffer


def test_the_value_function_has_a_lambda_of_its_own() -> None:
    buffer = buffer_of(value_lambda=1.0)
    # Errors are 0 but for R - 1 = 3 and 7 at the last token, which fade by a half for each token before it.
    assert buffer.advantages.tolist() == [[[0.75, 1.5, 3.0], [3.5, 7.0, 0.0]]]
    assert buffer.returns.tolist() == [[[4.0, 4.0, 4.0], [8.0, 8.0, 0.0]]]
    assert buffer_of().returns.tolist() == [[[1.75, 2.5, 4.0], [4.5, 8.0, 0.0]]]


def test_lambda_grows_with_the_length_of_the_response() -> None:
    # 1 - 1 / (2 * 3) = 5/6 and 1 - 1 / (2 * 2) = 3/4.
    expected = [[[3 * 25 / 36, 3 * 5 / 6, 3], [7 * 3 / 4, 7, 0]]]
    np.testing.assert_allclose(buffer_of(lambda_alpha=2.0).advantages, expected, rtol=1e-6)
    # VAPO's 0.05 is not above 0 up to 20 tokens.
    assert length_lambdas(np.array([1, 20, 32, 1000]), alpha=0.05).tolist() == pytest.approx([0, 0, 0.375, 0.98])


def test_the_same_share_of_the_score_reaches_the_first_token_of_every_response() -> None:
    found = buffer_of(lambda_share=0.25).advantages[0]
    np.testing.assert_allclose(found[:, 0], [0.25 * 3, 0.25 * 7], rtol=1e-6)
    np.testing.assert_allclose(found[0, 1], 0.5 * 3, rtol=1e-6)


def test_credit_fades_by_turn_and_not_by_token() -> None:
    mask = np.array([[[True, True, True]], [[True, False, False]], [[True, True, False]]])
    reward = np.zeros((3, 1, 3), np.float32)
    reward[2, 0, 1] = 8.0
    lambdas = turn_lambdas(mask, 0.5)
    assert lambdas.tolist() == [[[1.0, 1.0, 0.5]], [[0.5, 1.0, 1.0]], [[1.0, 0.5, 1.0]]]
    ended = np.array([[False], [False], [True]])
    found = token_advantages(
        reward, np.zeros((3, 1, 3)), mask, last_value=np.zeros(1), ended=ended, gamma=1.0, gae_lambda=lambdas
    )
    assert found.tolist() == [[[2.0, 2.0, 2.0]], [[4.0, 0.0, 0.0]], [[8.0, 8.0, 0.0]]]
    assert buffer_of(turn_lambda=0.5).advantages.tolist() == [[[3.0, 3.0, 3.0], [7.0, 7.0, 0.0]]]


REFUSED: dict[str, dict[str, Any]] = {
    "value_lambda=1.5: a number from 0 to 1": {"value_lambda": 1.5},
    "lambda_alpha=0: a number above 0": {"lambda_alpha": 0},
    "lambda_share=nan": {"lambda_share": float("nan")},
    "turn_lambda='x'": {"turn_lambda": "x"},
    "lambda_alpha and turn_lambda are rules for the same": {"lambda_alpha": 1.0, "turn_lambda": 1.0},
    "value_lambda=1.0 with group_advantage='grpo': it is": {
        "value_lambda": 1.0,
        "group_advantage": "grpo",
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_lambdas_that_cannot_be_are_refused(message: str) -> None:
    settings = dict(REFUSED[message])
    policy = {"value": "none"} if "group_advantage" in settings else {}
    with pytest.raises(ValueError, match=message):
        setups.ppox(environment=setups.env(8, group_size=4), policy_kwargs=policy, rollout_buffer_kwargs=settings)
