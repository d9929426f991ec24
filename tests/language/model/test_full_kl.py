"""The exact KL to the reference: against sums over the vocabulary by the plain models, and what estimates it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sb3_ppo_ext import AdaptiveKL
from sb3_ppo_ext.language import LanguageModelPolicy, SequenceRolloutBuffer
from sb3_ppo_ext.language.model import causal_lm as model_module
from sb3_ppo_ext.language.model.full_kl import kl_of
from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.language.training.credit import token_kl
from sb3_ppo_ext.language.training.token_update import TokenAdapter
from sb3_ppo_ext.objective.terms import KnobValues, Objective, ppo_terms
from tests.language import setups, tiny
from tests.language.token_updates import minibatch

LORA = {"r": 2, "init_lora_weights": False}
TEMPERATURE = 0.7


def moved(family: str = "gpt2", **options: Any) -> LanguageModelPolicy:
    """A policy away from its reference, in float64."""
    policy = setups.policy(model=lambda: tiny.model(family), temperature=TEMPERATURE, **options).double()
    with torch.no_grad():
        for parameter in policy.model_parameters():
            parameter.mul_(1.1)
    return policy


def of_policy(policy: LanguageModelPolicy, tokens: Tokens) -> Tensor:
    return tokens.gathered(policy.reference_kl(tokens, policy.states(tokens)[0]))


def by_brute_force(policy: LanguageModelPolicy, tokens: Tokens) -> Tensor:
    """Row by row without padding, over all the logits of the plain models."""
    every = []
    for row in range(len(tokens.prompt)):
        prompt, response = tokens.prompt[row][tokens.prompt_mask[row]], tokens.response[row][tokens.mask[row]]
        ids, after = torch.cat((prompt, response))[None], slice(len(prompt) - 1, -1)
        with torch.no_grad(), policy.as_reference() as reference:
            q = torch.distributions.Categorical(logits=reference.plain(input_ids=ids).logits[0, after] / TEMPERATURE)
        p = torch.distributions.Categorical(logits=policy.lm.plain(input_ids=ids).logits[0, after] / TEMPERATURE)
        every.append(torch.distributions.kl_divergence(p, q))
    return torch.cat(every)


def gradients(policy: LanguageModelPolicy, kl: Tensor) -> list[Tensor]:
    policy.zero_grad()
    (kl * torch.linspace(1, 2, len(kl), dtype=kl.dtype)).sum().backward()
    return [parameter.grad.clone() for parameter in policy.model_parameters() if parameter.grad is not None]


def test_tokens_that_the_policy_excludes_add_nothing() -> None:
    log_p, log_q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    torch.testing.assert_close(kl_of(log_p, log_q), torch.tensor(2.0).log())
    assert kl_of(log_p, log_p) == 0
    assert kl_of(log_q, log_p) == torch.inf  # it allows what the reference excludes


@pytest.mark.parametrize("at_once", [2**24, 3 * tiny.VOCABULARY])
@pytest.mark.parametrize(
    ("family", "lora"),
    [("gpt2", None), ("pythia", None), ("gpt2", LORA), ("qwen3", {**LORA, "target_modules": ["q_proj", "lm_head"]})],
)
def test_value_and_gradient_are_those_of_the_sum_over_the_vocabulary(
    family: str, lora: dict[str, Any] | None, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "LOGITS_AT_ONCE", at_once)  # of the second, three rows of logits at a time
    policy, tokens = moved(family, lora=lora), tiny.ragged_tokens()
    mine, expected = of_policy(policy, tokens), by_brute_force(policy, tokens)
    torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-9)
    assert (expected > 0).all() and expected.max() > 0.01
    own, theirs = gradients(policy, mine), gradients(policy, expected)
    assert len(own) == len(theirs) > 0
    for one, other in zip(own, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert all(parameter.grad is None for parameter in (policy.reference or torch.nn.Module()).parameters())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_it_is_what_the_estimators_are_on_average(estimator: str) -> None:
    """One prompt, and every token of the vocabulary after it: sum_v p_v k(v) over all of them is the exact KL."""
    policy, size = moved(), tiny.VOCABULARY
    prompt = torch.tensor([3, 4, 5]).expand(size, 3)
    yes = torch.ones(size, 3, dtype=torch.bool)
    tokens = Tokens(prompt, yes, torch.arange(size)[:, None], yes[:, :1])
    with torch.no_grad():
        log_p, _, _ = policy.evaluate_tokens(tokens, entropy_grad=False)
        exact = of_policy(policy, tokens)[0].item()
    log_q = policy.reference_log_prob(tokens)
    each = token_kl(log_p.numpy(), log_q.numpy(), tokens.mask.numpy(), estimator)
    assert (log_p.exp().numpy() * each).sum() == pytest.approx(exact, rel=1e-9) and exact > 0.01


def test_it_is_a_term_of_the_loss_with_its_gradient() -> None:
    policy = moved()
    batch = minibatch(policy, drift=0.0)
    assert batch.mask is not None
    tokens = policy.tokens(batch.observation, batch.action, batch.mask)
    adapter = TokenAdapter(policy, entropy_grad=False, with_reference=True, full_kl=True)
    terms = ppo_terms(adapter.evaluate(batch), batch, Objective(ref_kl_estimator="full"), KnobValues(clip_range=0.2))
    assert terms.ref_kl is not None
    torch.testing.assert_close(terms.ref_kl, by_brute_force(policy, tokens).mean(), rtol=1e-6, atol=1e-9)
    policy.zero_grad()
    terms.ref_kl.backward()
    mine = [parameter.grad.clone() for parameter in policy.model_parameters() if parameter.grad is not None]
    policy.zero_grad()
    by_brute_force(policy, tokens).mean().backward()
    for one, parameter in zip(mine, policy.model_parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:ref_kl_estimator:sb3_ppo_ext.TrainingWarning")
@pytest.mark.parametrize("lora", [None, LORA])
def test_in_the_reward_it_is_paid_by_each_token(lora: dict[str, Any] | None) -> None:
    model = setups.ppox(
        ref_kl_coef=0.3,
        policy_kwargs={"lora": lora},
        rollout_buffer_kwargs={"ref_kl_estimator": "full", "micro_batch_tokens": 40},
    )
    policy, buffer = model.policy, model.rollout_buffer
    assert isinstance(policy, LanguageModelPolicy) and isinstance(buffer, SequenceRolloutBuffer)
    with torch.no_grad():
        for parameter in policy.model_parameters():
            parameter.mul_(1.1)
    _, callback = model._setup_learn(16)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, buffer, model.n_steps)
    rollout = model._family.rollout(model._run())
    rows = rollout.rows
    assert rows.mask is not None
    with torch.no_grad():
        expected = np.zeros(buffer.masks.shape, np.float32)
        expected[buffer.masks] = of_policy(policy, policy.tokens(rows.observation, rows.action, rows.mask)).numpy()
    np.testing.assert_allclose(buffer.token_kl(), expected, rtol=1e-3, atol=1e-5)
    last = buffer.masks.sum(-1, keepdims=True) - 1
    scores = np.where(np.arange(buffer.masks.shape[-1]) == last, buffer.rewards[..., None], 0.0)
    np.testing.assert_allclose(buffer.token_rewards, scores - 0.3 * expected, rtol=1e-3, atol=1e-5)
    assert rollout.controller_inputs["ref_kl"] == pytest.approx(expected.sum() / 16, rel=1e-3)
    assert expected.max() > 0.01


@pytest.mark.filterwarnings("ignore:ref_kl_estimator:sb3_ppo_ext.TrainingWarning")
@pytest.mark.parametrize("place", ["reward", "loss", "both"])
def test_it_trains_and_steers_wherever_it_is_put(place: str) -> None:
    model = setups.ppox(
        ref_kl_coef=AdaptiveKL(0.1, 1e-4), rollout_buffer_kwargs={"ref_kl_estimator": "full", "ref_kl": place}
    )
    model.learn(16)  # exactly 0 before the first step, to which the law does not answer
    assert model.knobs.numbers()["ref_kl_coef"] == pytest.approx(0.1)
    model.learn(16, reset_num_timesteps=False)  # the policy has moved: doubled
    assert model.knobs.numbers()["ref_kl_coef"] == pytest.approx(0.2)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    assert buffer.token_kl().min() >= -1e-6 and buffer.token_kl().max() > 1e-4
