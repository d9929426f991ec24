"""The base of policies over a causal language model: their files, evaluation mode, and constructor arguments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_ppo_ext.language.arguments import optimizer_options
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.checkpoints import merged_model, require_same_names, trained_state, write_folder
from sb3_ppo_ext.language.model.gguf_writing import write_gguf


class CausalLMPolicy(ActorCriticPolicy):
    """A policy with a ``CausalLM`` as ``lm``; its state dict is what training changes.

    It has neither the reference nor a base model under an adapter: they come from the model named at construction.
    """

    lm: CausalLM
    options: dict[str, Any]  # the arguments of the subclass, besides the spaces and the optimizer

    def _begin(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        optimizer_class: type[torch.optim.Optimizer],
        optimizer_kwargs: dict[str, Any] | None,
        options: dict[str, Any],
    ) -> None:
        """Begins the construction, without the networks that ActorCriticPolicy would build."""
        BasePolicy.__init__(
            self,
            observation_space,
            action_space,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_options(optimizer_class, optimizer_kwargs),
        )
        self.options = options

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # a plain dict does
        """The trained parameters by name."""
        return trained_state(self, super().state_dict(*args, **kwargs))

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Takes back the parameters of ``state_dict()``; ``ValueError`` if they are another policy's."""
        require_same_names(self, state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Writes the language model as a plain Hugging Face folder for ``AutoModelForCausalLM``, adapters merged.

        Before it is written the merged model's logits are compared with those of the model in training. With
        ``tokenizer`` the folder has that and its chat template too. Its generation config has the end tokens that the
        policy was trained with. The folder is complete or not there; one that exists keeps its other files.
        """
        write_folder(self.lm, folder, tokenizer, self._generation_settings())

    def save_gguf(self, file: str | Path, tokenizer: Any, **options: Any) -> None:
        """Writes a Llama-shaped model and its tokenizer as a GGUF file; ``gguf_writing.write_gguf`` has the options."""
        write_gguf(merged_model(self.lm), tokenizer, file, **options)

    def _generation_settings(self) -> dict[str, Any]:
        """What of ``generation_config.json`` follows from the policy."""
        return {}

    def train(self, mode: bool = True) -> CausalLMPolicy:
        """Stays in evaluation mode: dropout would make new and old log-probabilities those of different networks."""
        super().train(False)
        return self

    def _get_constructor_parameters(self) -> dict[str, Any]:
        optimizer = {"optimizer_class": self.optimizer_class, "optimizer_kwargs": self.optimizer_kwargs}
        spaces_ = {"observation_space": self.observation_space, "action_space": self.action_space}
        return {**spaces_, "lr_schedule": self._dummy_schedule, **self.options, **optimizer}
