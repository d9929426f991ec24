"""The optimum of RLHF is known: pi*(y) = ref(y) exp(r(y) / beta) / Z, where E[r] - beta KL(pi || ref) is beta log Z."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv
from sb3_ppo_ext.language.model.tokens import Tokens
from tests.language import tiny

VOCABULARY, LENGTH, EOS = 6, 3, 5
BETA = 0.5  # nats to reward units


def responses(begun: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """All 156 of them: up to three tokens, the last one the only end-of-text."""
    if len(begun) == LENGTH or begun[-1:] == (EOS,):
        return [begun]
    return [one for token in range(VOCABULARY) for one in responses((*begun, token))]


@pytest.mark.filterwarnings("ignore:.*of the samples are outside the clip range")  # a toy moves far at once
@pytest.mark.filterwarnings("ignore:the model's generation_config has eos_token_id")  # an ordinary token here
def test_training_approaches_the_closed_form_optimum() -> None:
    every = responses()
    reward = dict(zip(every, np.random.default_rng(0).normal(size=len(every)), strict=True))

    def score(prompts: list[list[int]], answers: list[list[int]]) -> list[float]:
        return [reward[tuple(one) if len(one) == LENGTH else (*one, EOS)] for one in answers]

    env = PromptVecEnv([[0]], score, n_envs=64, max_new_tokens=LENGTH, vocab_size=VOCABULARY, eos_token_id=EOS)
    model = PPOX(
        LanguageModelPolicy, env, n_steps=4, batch_size=64, n_epochs=4, gamma=1.0, learning_rate="linear:3e-3:1e-4",
        ref_kl_coef=BETA, seed=0, device="cpu",
        policy_kwargs={"model": lambda: tiny.model(vocabulary=VOCABULARY, sharpness=5.0)},
    )  # fmt: skip
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    ids = torch.tensor([[*one, *[EOS] * (LENGTH - len(one))] for one in every])
    mask = torch.tensor([[slot < len(one) for slot in range(LENGTH)] for one in every])
    prompt = torch.zeros(len(every), 1, dtype=torch.long)
    tokens = Tokens(prompt, torch.ones_like(prompt, dtype=torch.bool), ids, mask)
    rewards, ref = torch.tensor([reward[one] for one in every]), policy.reference_log_prob(tokens).sum(-1).double()

    def reached() -> float:
        with torch.no_grad():
            log_p = policy.evaluate_tokens(tokens, entropy_grad=False)[0].sum(-1).double()
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-4)
        return float((log_p.exp() * (rewards - BETA * (log_p - ref))).sum())

    best = float(BETA * torch.logsumexp(ref + rewards / BETA, dim=0))
    start = reached()
    model.learn(30 * 256)
    # It begins at -0.85 of the best. Of 8 seeds each reached 0.86 to 0.92; with half of beta, or twice as much, one
    # reaches 0.50 and 0.55, and no more than 0.63 however long it learns.
    assert start < 0
    assert 0.75 * best < reached() <= best + 1e-6
