from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext.language import ResponseSpace, SequenceRolloutBuffer, prompt_space
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.terms import KnobValues, Objective, ppo_terms

EOS = 1


def buffer_of(action: list[list[int]], **options: Any) -> SequenceRolloutBuffer:
    """One step of two environments: scores 3 and 5, values 0, log-probabilities -1, gamma = lambda = 1."""
    space = ResponseSpace(24, 3, EOS, 0)
    buffer = SequenceRolloutBuffer(1, prompt_space(24, 2), space, "cpu", gae_lambda=1, gamma=1, n_envs=2, **options)
    observation = {INPUT_IDS: np.full((2, 2), 7), ATTENTION_MASK: np.ones((2, 2), np.int8)}
    buffer.add(observation, np.array(action), np.array([3.0, 5.0]), np.ones(2), torch.zeros(2, 3), -torch.ones(2, 3))
    buffer.compute_returns_and_advantage(torch.zeros(2), np.ones(2))
    return buffer


def test_only_a_response_that_was_cut_off_pays_the_penalty() -> None:
    buffer = buffer_of([[4, EOS, 0], [4, 5, 6]], missing_eos_penalty=2.0)
    assert buffer.cut_off().tolist() == [[False, True]]
    # Returns are the sums of what is still to come: 3 in both of two tokens, 5 - 2 in each of three.
    assert buffer.returns.tolist() == [[[3, 3, 0], [3, 3, 3]]]
    assert buffer.rewards.tolist() == [[3, 5]]  # the raw score stays


def test_a_response_that_ends_in_the_last_slot_was_not_cut_off() -> None:
    assert not buffer_of([[4, 5, EOS], [EOS, 0, 0]], missing_eos_penalty=2.0).cut_off().any()


def test_the_penalty_on_the_kl_is_paid_token_by_token() -> None:
    buffer = buffer_of([[4, EOS, 0], [4, 5, 6]])
    buffer.penalize(np.array([[[-3.0, -1.0, 9.0], [-1.0, -1.0, -2.0]]]), ref_kl_coef=0.5)
    # k1 is 2, 0 and 0, 0, 1: the first token of the first response costs 1, the last of the second one half.
    assert buffer.token_rewards.tolist() == [[[-1, 3, 0], [0, 0, 4.5]]]
    assert buffer.returns.tolist() == [[[2, 3, 0], [4.5, 4.5, 4.5]]]


def test_values_and_log_probs_of_empty_slots_are_dropped() -> None:
    buffer = buffer_of([[4, EOS, 0], [4, 5, 6]])
    assert buffer.log_probs.tolist() == [[[-1, -1, 0], [-1, -1, -1]]]
    observation = {name: array[0] for name, array in buffer.observations.items()}
    buffer.reset()
    buffer.add(
        observation, np.array([[4, EOS, 0], [4, 5, 6]]), np.zeros(2), np.ones(2), torch.ones(2, 3), torch.ones(2, 3)
    )
    assert buffer.values.tolist() == [[[1, 1, 0], [1, 1, 1]]]


def test_one_log_probability_per_action_is_refused() -> None:
    buffer = buffer_of([[4, EOS, 0], [4, 5, 6]])
    buffer.reset()
    with pytest.raises(ValueError, match=r"log_prob is \(2,\)"):
        buffer.add({}, np.zeros((2, 3)), np.zeros(2), np.zeros(2), torch.zeros(2), torch.zeros(2))


def test_the_kl_in_the_loss_is_that_of_the_new_policy_to_the_reference() -> None:
    zero = torch.zeros(1, 1)
    batch = Minibatch(zero, zero, zero, zero, zero, zero)
    objective = Objective(normalize_advantage=False, ref_kl_estimator="k3")
    new = Evaluation(zero, None, zero, ref_log_prob=torch.tensor([[math.log(2)]]))
    terms = ppo_terms(new, batch, objective, KnobValues(clip_range=0.2))
    assert terms.ref_kl is not None
    # r = p_ref / p = 2: r - 1 - log r = 1 - log 2.
    torch.testing.assert_close(terms.ref_kl, torch.tensor(1 - math.log(2)))
    weighed = terms.weighted(KnobValues(clip_range=0.2, ref_kl_coef=3.0)).total()
    torch.testing.assert_close(weighed, torch.tensor(3 * (1 - math.log(2))))
