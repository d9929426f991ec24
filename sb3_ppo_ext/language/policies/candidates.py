"""A language model as the policy of a text environment with named actions: it chooses the likeliest of n texts.

Letters as in ``model``; n candidates. The rollout buffer, the objective and the exact KL are the ordinary ones of a
Discrete action space, for the scores of the n texts are the logits of a categorical distribution.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, Distribution
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor
from transformers import DynamicCache

from sb3_ppo_ext.language.arguments import check_options
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.critics import SharedCritic
from sb3_ppo_ext.language.model.loading import Lora, ModelSource, check_model, load_model, lora_config, with_adapter
from sb3_ppo_ext.language.model.tokens import scattered
from sb3_ppo_ext.language.policies.causal_lm_policy import CausalLMPolicy
from sb3_ppo_ext.language.policies.choices import check_candidates, divisor_of, listed_candidates, masked, texts_of

KEPT_TEXTS = 2**14


class CandidatePolicy(CausalLMPolicy):
    """
    Chooses among ``candidates`` by their log-probability after the observation's text (GLAM, Carta et al. 2023).

    For a Discrete action space over ``TextObservation``; the value is a head on the state after the observation. With
    ``TextObservation(env, action_masks=True)`` the actions that the environment's ``action_masks()`` excludes have
    probability 0; the mask is part of the observation, so what was sampled under it is trained under it.

    :param model: as for :class:`LanguageModelPolicy`
    :param tokenizer: of transformers, for the observations and the candidates
    :param candidates: the text of each action, in order; mind the space before it, where the tokenizer needs one. What
        the tokenizer puts around a text is left off: a candidate continues the prompt
    :param score: a candidate's logit: the "sum" of its tokens' log-probabilities, the probability that the model would
        say just that, by which a text of several more tokens than another is hardly ever chosen and hardly ever
        learned; that sum by its tokens ("token_mean") or its words ("word_mean"), which puts texts of different length
        on a level (TWOSOME, Tan et al. 2024, arXiv 2401.14151, section 4.2); or the log-probability of its
        "first_token" alone, which takes one forward pass for all of them and needs those to differ
    :param prompt: what the model is given, with the observation in the place of ``{}``
    :param temperature: the scores are divided by it
    """

    ppox_family = "sb3_ppo_ext.engines.rows:EagerRowFamily"

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        model: ModelSource,
        tokenizer: Any,
        candidates: Iterable[str],
        *,
        score: str = "sum",
        prompt: str = "{}",
        lora: Lora | None = None,
        temperature: float = 1.0,
        dtype: str | torch.dtype | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        temperature, *_ = check_options(temperature, 1.0, 0, use_sde=use_sde, sampling={})
        candidates = listed_candidates(candidates)
        check_candidates(observation_space, action_space, candidates, score, prompt)
        options = {
            **{"model": model, "tokenizer": tokenizer, "candidates": candidates, "score": score},
            **{"prompt": prompt, "lora": lora, "temperature": temperature, "dtype": dtype},
        }
        self._begin(observation_space, action_space, optimizer_class, optimizer_kwargs, options)
        self.score, self.prompt, self.temperature = score, prompt, temperature
        self.vocabulary = Vocabulary.of(tokenizer)
        plain = load_model(model, dtype)
        config = lora_config(lora, plain)
        self.lm = CausalLM(with_adapter(plain, config), vocab_size=self.vocabulary.size, temperature=1.0)
        check_model(self.lm, eos_token_id=None, sequence_length=2)
        texts = enumerate(candidates)
        self._set_candidates([self.vocabulary.ids_of_continuation(text, f"candidate {row}") for row, text in texts])
        self.critic = SharedCritic(int(plain.get_output_embeddings().weight.shape[1]))
        self.action_dist = CategoricalDistribution(len(candidates))
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.optimizer = self.optimizer_class(trained, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]  # all take lr
        self.prompts: dict[str, list[int]] = {}  # text -> ids: small environments repeat their texts

    def _set_candidates(self, ids: list[list[int]]) -> None:
        first = [tokens[0] for tokens in ids]
        if self.score == "first_token" and len(set(first)) < len(first):
            raise ValueError(
                'score="first_token": two candidates begin with the same token (they begin with '
                f'{self.vocabulary.text_of(first)!r}); word them differently, or pass score="sum"'
            )
        longest = 1 if self.score == "first_token" else max(map(len, ids))
        padded = torch.tensor([(tokens + [0] * longest)[:longest] for tokens in ids])
        self.register_buffer("candidate", padded, persistent=False)
        mask = torch.tensor([[slot < len(tokens) for slot in range(longest)] for tokens in ids])
        self.register_buffer("candidate_mask", mask, persistent=False)
        self.register_buffer("divisor", divisor_of(self.score, self.options["candidates"], mask), persistent=False)

    def prompt_tokens(self, observation: PyTorchObs) -> tuple[Tensor, Tensor]:
        """The observations' prompts as ids and mask [B, P], padded on the left."""
        rows = [self._ids_of(text, row) for row, text in enumerate(texts_of(observation))]
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return ids, torch.arange(longest, device=self.device)[None] >= longest - lengths[:, None]

    def _ids_of(self, text: str, row: int) -> list[int]:
        if text not in self.prompts:
            ids = self.vocabulary.ids_of(self.prompt.replace("{}", text), row)
            limit, longest = getattr(self.lm.plain.config, "max_position_embeddings", None), self._texts()[1].shape[1]
            if isinstance(limit, int) and len(ids) + longest > limit:
                raise ValueError(
                    f"the prompt of row {row} has {len(ids)} tokens, the longest candidate {longest}, and the model "
                    f"reads {limit} in all: lower max_bytes of TextObservation. It begins with {text[:60]!r}"
                )
            if len(self.prompts) >= KEPT_TEXTS:
                self.prompts.clear()
            self.prompts[text] = ids
        return self.prompts[text]

    def logits_and_values(self, observation: PyTorchObs) -> tuple[Tensor, Tensor]:
        """Scores of the candidates [B, n] over the temperature, under the mask, and values [B, 1].

        The observation is read once; only the candidates' own tokens are read n times, over its cache. Gradients flow
        through the cache.
        """
        ids, mask = self.prompt_tokens(observation)
        candidate, candidate_mask = self._texts()
        cache = DynamicCache(config=self.lm.plain.config) if candidate.shape[1] > 1 else None
        last = self.lm.hidden(ids, mask, cache=cache)[:, -1]
        first = self.lm.logits(last).log_softmax(dim=-1)[:, candidate[:, 0]]  # [B, n]
        scores = first if cache is None else first + self._rest(cache, mask, candidate, candidate_mask)
        scores = scores / (self.get_buffer("divisor") * self.temperature)
        return masked(scores, observation), self.critic.of_hidden(last)[:, None]

    def _rest(self, cache: DynamicCache, mask: Tensor, candidate: Tensor, candidate_mask: Tensor) -> Tensor:
        """Log-probability [B, n] of each candidate's tokens after its first."""
        batch, (n, _) = len(mask), candidate.shape
        cache.batch_repeat_interleave(n)
        token, real = candidate.repeat(batch, 1), candidate_mask.repeat(batch, 1)
        seen = torch.cat((mask.repeat_interleave(n, dim=0), real[:, :-1]), dim=1)
        hidden = self.lm.hidden(token[:, :-1], seen, cache=cache)
        token, real = token[:, 1:], real[:, 1:]
        log_prob, _ = self.lm.log_prob_and_entropy(hidden[real], token[real], entropy_grad=False)
        return scattered(log_prob, real).sum(-1).view(batch, n)

    def _texts(self) -> tuple[Tensor, Tensor]:
        return self.get_buffer("candidate"), self.get_buffer("candidate_mask")

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The choice among the candidates."""
        return self.action_dist.proba_distribution(self.logits_and_values(obs)[0])

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions [B], values [B, 1], log-probabilities [B]."""
        logits, values = self.logits_and_values(obs)
        distribution = self.action_dist.proba_distribution(logits)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values [B, 1], log-probabilities [B] and entropies [B] in nats."""
        logits, values = self.logits_and_values(obs)
        distribution = self.action_dist.proba_distribution(logits)
        return values, distribution.log_prob(actions), distribution.entropy()

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values [B, 1]."""
        ids, mask = self.prompt_tokens(obs)
        return self.critic.of_hidden(self.lm.hidden(ids, mask)[:, -1])[:, None]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.get_distribution(observation).get_actions(deterministic=deterministic)
