"""The actor of a rollout whose responses a sampler draws in the trained model's place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sb3_ppo_ext.language.engines.actors import EagerTokenActor
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS
from sb3_ppo_ext.language.model.critics import SharedCritic
from sb3_ppo_ext.language.model.generation import Response
from sb3_ppo_ext.language.model.nan_origin import require_finite
from sb3_ppo_ext.language.model.samplers import Sampler
from sb3_ppo_ext.language.training.importance import scored_again
from sb3_ppo_ext.language.training.shared_prompts import branches_in
from sb3_ppo_ext.objective.batch import Observation
from sb3_ppo_ext.run import Run

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


class SamplerActor(EagerTokenActor):
    """Responses by the policy's sampler. Where that is not exact, the policy computes log-probabilities and values."""

    def __init__(self, policy: LanguageModelPolicy, run: Run, sampler: Sampler) -> None:
        super().__init__(policy, run)
        self.sampler = sampler
        self.first = 0  # the environment of the next response, where a shard answers after another

    @torch.no_grad()
    def sampled(self, observation: Observation) -> tuple[Tensor, Tensor, Tensor]:
        """Responses, and value and log-probability of every token by the policy, all [N, L]."""
        assert isinstance(observation, dict)
        policy, prompt, mask = self.policy, observation[INPUT_IDS].long(), observation[ATTENTION_MASK].bool()
        value_of = policy.critic.of_hidden if isinstance(policy.critic, SharedCritic) else None
        response = self.sampler.respond(prompt, mask, policy.request(), value_of=value_of, progress=self.run.progress)
        tokens = policy.tokens(observation, response.token, response.mask)
        if not self.sampler.exact:
            response = self._scored_again(response, observation)
        elif value_of is None:
            response = response._replace(value=policy.values(tokens))
        require_finite(policy.lm, tokens.trimmed(), log_prob=response.log_prob, value=response.value)
        return response.token, response.value, response.log_prob

    def _scored_again(self, response: Response, observation: Observation) -> Response:
        """The response with log-probabilities and values by the policy; those of the sampler go to the buffer."""
        started = time.perf_counter()
        self.buffer.add_sampler_log_probs(response.log_prob, self.first)
        self.first = (self.first + len(response.log_prob)) % self.run.n_envs
        tokens = self.policy.tokens(observation, response.token, response.mask).sharing(branches_in(self.buffer))
        limit = self.buffer.settings.micro_batch_tokens
        log_prob, value = scored_again(self.policy, tokens, limit)
        self.spent("rescoring", time.perf_counter() - started)
        return response._replace(log_prob=log_prob, value=value)
