"""The policy that is a causal language model: an observation is a prompt, an action the response to it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from transformers import PreTrainedModel

from sb3_ppo_ext.language.arguments import check_options
from sb3_ppo_ext.language.envs.prompt_env import RewardSource
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS, require_prompt_length, require_spaces
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.critics import NoCritic, SharedCritic, build_critic
from sb3_ppo_ext.language.model.generation import Decoder, Response, generate
from sb3_ppo_ext.language.model.generators import Request
from sb3_ppo_ext.language.model.loading import (
    Lora,
    ModelSource,
    check_model,
    compute_dtype_of,
    frozen_copy,
    load_model,
    lora_config,
    with_adapter,
)
from sb3_ppo_ext.language.model.nan_origin import require_finite
from sb3_ppo_ext.language.model.progress import RolloutProgress
from sb3_ppo_ext.language.model.reference import WithReference
from sb3_ppo_ext.language.model.samplers import sampler_of
from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.language.policies.causal_lm_policy import CausalLMPolicy
from sb3_ppo_ext.language.policies.sampling import BestOfN, best_of_n
from sb3_ppo_ext.update.optimizers import RATIO


class LanguageModelPolicy(WithReference, CausalLMPolicy):
    """
    A pretrained causal language model with a value function, sampled and trained token by token.

    Given as ``PPOX(LanguageModelPolicy, PromptVecEnv(...), policy_kwargs=dict(model=..., ...))``. Its rollout buffer,
    with settings of its own, is :class:`SequenceRolloutBuffer`.

    :param model: folder or hub name, a function that returns a model of transformers, or such a model (it is copied,
        and saved inside the zip; the others are not). A PEFT adapter in any of them is merged into its weights
    :param lora: train only a fresh low-rank adapter: a ``peft.LoraConfig``, or a mapping of its fields (on all linear
        layers unless it has ``target_modules``); None trains all of the model
    :param value: where the values come from: a head on the model ("shared"), on a copy of its last block ("branch"), or
        on a model of its own ("separate"); "none" has no value function, and compares the responses to a prompt with
        each other, which takes ``group_size`` in the environment and ``group_advantage`` in the buffer's settings
    :param temperature: of sampling; the log-probabilities are those of the distribution at this temperature
    :param reference: whether the model as it began is kept, for the KL to it; with ``lora`` it costs no memory
    :param value_lr_ratio: the value function's learning rate over the model's
    :param value_warmup: rollouts from which only the value function learns, before the model begins to
    :param sampler: what draws the responses of rollouts: None, the model itself; a copy of it for a CPU, adapters
        merged and weights laid out for the processor, in "float32", in "bfloat16", or in what a measurement at the
        start finds to be faster ("auto"); "continuous_batching" of transformers or "vllm", with options as in {"vllm":
        {"enable_sleep_mode": True}}; or a function that returns a ``Generator``. Where its log-probabilities are not
        the model's own, these are computed again, and the buffer's ``importance_bound`` applies
    :param dtype: of the model's weights, as "bfloat16"; None leaves them as they are
    :param compute_dtype: "bfloat16" computes the products of training, scoring and of the reference in bfloat16 over
        weights, optimizer and logits in float32; with a ``sampler``. None computes in the weights' precision
    """

    ppox_family = "sb3_ppo_ext.language.engines.family:TokenFamily"
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        model: ModelSource,
        *,
        lora: Lora | None = None,
        value: str = "shared",
        temperature: float = 1.0,
        reference: bool = True,
        value_lr_ratio: float = 1.0,
        value_warmup: int = 0,
        sampler: str | Mapping[str, Any] | Callable[[], Any] | None = None,
        dtype: str | torch.dtype | None = None,
        compute_dtype: str | torch.dtype | None = None,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
        **sampling: Any,
    ) -> None:
        temperature, value_lr_ratio, value_warmup = check_options(
            temperature, value_lr_ratio, value_warmup, use_sde=use_sde, sampling=sampling, owner=type(self)
        )
        self.prompt_length, self.responses = require_spaces(observation_space, action_space)
        options = {
            **{"model": model, "lora": lora, "value": value, "temperature": temperature, "reference": reference},
            **{"value_lr_ratio": value_lr_ratio, "value_warmup": value_warmup, "dtype": dtype, "sampler": sampler},
            "compute_dtype": compute_dtype,
        }
        self._begin(observation_space, action_space, optimizer_class, optimizer_kwargs, options)
        self.value_lr_ratio, self.value_warmup = value_lr_ratio, value_warmup
        self._build_models(load_model(model, dtype), lora, value, temperature, reference)
        self.sampler = sampler_of(sampler, self.lm)
        self._compute_in(compute_dtype_of(compute_dtype, self.lm, sampler))
        self.optimizer = self._build_optimizer(lr_schedule(1))

    def _build_models(
        self, plain: PreTrainedModel, lora: Lora | None, value: str, temperature: float, reference: bool
    ) -> None:
        sampling: dict[str, Any] = {"vocab_size": self.responses.vocab_size, "temperature": temperature}
        self.has_reference = reference
        self.reference = frozen_copy(plain, **sampling) if reference and lora is None else None
        config = lora_config(lora, plain)
        trunk: Any = copy.deepcopy(plain.base_model) if value == "separate" else None
        self.lm = CausalLM(with_adapter(plain, config), **sampling)
        length = self.prompt_length + self.responses.max_new_tokens
        check_model(self.lm, eos_token_id=self.responses.eos_token_ids, sequence_length=length)
        self.critic = build_critic(value, self.lm, trunk, config)

    def _compute_in(self, dtype: torch.dtype | None) -> None:
        self.lm.compute_dtype = dtype
        if self.reference is not None:
            self.reference.compute_dtype = dtype

    def _build_optimizer(self, rate: float) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": self.model_parameters() + self.value_parameters()}]
        if self.value_lr_ratio != 1:
            groups = [
                {"params": self.model_parameters(), RATIO: 1.0},
                {"params": self.value_parameters(), "lr": rate * self.value_lr_ratio, RATIO: self.value_lr_ratio},
            ]
        return self.optimizer_class(groups, lr=rate, **self.optimizer_kwargs)  # type: ignore[call-arg]  # all take lr

    def model_parameters(self) -> list[nn.Parameter]:
        """The language model's trainable parameters."""
        return [parameter for parameter in self.lm.parameters() if parameter.requires_grad]

    def value_parameters(self) -> list[nn.Parameter]:
        """The value function's own trainable parameters."""
        return [parameter for parameter in self.critic.parameters() if parameter.requires_grad]

    def tokens(self, observation: PyTorchObs, response: Tensor, mask: Tensor) -> Tokens:
        """Prompts and responses as the model takes them; a prompt may have several responses, as ``Tokens`` says."""
        assert isinstance(observation, dict)
        return Tokens(observation[INPUT_IDS].long(), observation[ATTENTION_MASK].bool(), response.long(), mask.bool())

    def request(self) -> Request:
        """What a sampler is asked for."""
        space = self.responses
        ends, temperature = tuple(space.eos_token_ids), self.lm.temperature
        return Request(space.max_new_tokens, space.vocab_size, temperature, ends, space.pad_token_id)

    def generate(self, observation: PyTorchObs, *, deterministic: bool = False, **options: Any) -> Response:
        """Responses [B, L] to the prompts, with their values where the critic shares the model's states."""
        assert isinstance(observation, dict)
        return generate(
            self.lm,
            observation[INPUT_IDS].long(),
            observation[ATTENTION_MASK].bool(),
            max_new_tokens=self.responses.max_new_tokens,
            eos_token_id=self.responses.eos_token_ids,
            pad_token_id=self.responses.pad_token_id,
            value_of=self.critic.of_hidden if isinstance(self.critic, SharedCritic) else None,
            deterministic=deterministic,
            **options,
        )

    def forward(
        self,
        obs: PyTorchObs,
        deterministic: bool = False,
        decoder_of: Callable[..., Decoder] = Decoder,
        progress: RolloutProgress | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Responses, and value and log-probability of every token, all [B, L] (0 after a response's end)."""
        response = self.generate(obs, deterministic=deterministic, decoder_of=decoder_of, progress=progress)
        value = response.value
        tokens = self.tokens(obs, response.token, response.mask).trimmed()
        if not isinstance(self.critic, SharedCritic):
            with torch.no_grad():
                value[:, : tokens.mask.shape[1]] = self.values(tokens)
        require_finite(self.lm, tokens, log_prob=response.log_prob, value=value)
        return response.token, value, response.log_prob

    def values(self, tokens: Tokens) -> Tensor:
        """The values [B, L] before every token of the responses, in reward units; 0 where there is none."""
        value = self.critic.values(self.lm, *tokens.joined(), tokens.layout)
        return tokens.response_states(value).masked_fill(~tokens.mask, 0.0)

    def obs_to_tensor(self, observation: Any) -> tuple[PyTorchObs, bool]:
        """Prompts as tensors, and whether they are a batch; ``ValueError`` for prompts of another length."""
        require_prompt_length(observation, self.prompt_length)
        return super().obs_to_tensor(observation)

    def _generation_settings(self) -> dict[str, Any]:
        ends = list(self.responses.eos_token_ids)
        return {"eos_token_id": ends if len(ends) > 1 else ends[0], "pad_token_id": self.responses.pad_token_id}

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        return self.generate(observation, deterministic=deterministic).token

    def predict_values(self, obs: PyTorchObs) -> Tensor:
        """Values [B, 1] of the prompts, before any response."""
        assert isinstance(obs, dict)
        mask = obs[ATTENTION_MASK].bool()
        values = self.critic.values(self.lm, obs[INPUT_IDS].long().masked_fill(~mask, 0), mask)
        return values[:, -1:]

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """Raises ``TypeError``: a response is drawn token by token, and has no distribution at hand."""
        raise TypeError("a language model has no distribution of whole responses; see evaluate_tokens()")

    def best_of_n(self, prompts: Any, n: int, scorer: RewardSource | None = None, **options: Any) -> BestOfN:
        """The best of n responses to each prompt by ``scorer``, or by the critic; ``sampling.best_of_n`` says more."""
        if scorer is None and isinstance(self.critic, NoCritic):
            raise ValueError(
                'best_of_n ranks by the critic where scorer=None, and value="none" has none: pass a scorer'
            )
        return best_of_n(self, prompts, n, scorer, **options)

    def evaluate_tokens(self, tokens: Tokens, *, entropy_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probability and entropy (nats) and value (reward units) of every token [B, L]; 0 where there is none."""
        hidden, value = self.states(tokens)
        return *self.lm.token_log_prob_and_entropy(hidden, tokens, entropy_grad=entropy_grad), value

    def states(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """The model's states [B, L, D] before every token of the responses, and the values [B, L]."""
        hidden, value = self.critic.states(self.lm, *tokens.joined(), tokens.layout)
        return tokens.response_states(hidden), tokens.response_states(value).masked_fill(~tokens.mask, 0.0)

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values [B] of the prompts; log-probability and entropy [B] of the responses, summed over their tokens."""
        mask = torch.from_numpy(self.responses.mask_of(actions.cpu().numpy())).to(actions.device)
        log_prob, entropy, value = self.evaluate_tokens(self.tokens(obs, actions, mask), entropy_grad=True)
        return value[:, 0], log_prob.sum(-1), entropy.sum(-1)
