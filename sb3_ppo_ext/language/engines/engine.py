"""What makes ``LanguageModelPolicy`` one that can be compiled: how much that saves, and who acts and trains then."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from sb3_ppo_ext.engines.cuda.graph_cache import DeviceGraphs
from sb3_ppo_ext.engines.graph_cache import Graphs
from sb3_ppo_ext.language.engines.compiled import CompiledDecoder, CompiledGradients, CompiledSequenceActor
from sb3_ppo_ext.language.engines.cuda_decoder import RecordedDecoder
from sb3_ppo_ext.language.engines.separate_critic import HalvedGradients
from sb3_ppo_ext.language.envs.spaces import ResponseSpace
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.critics import SeparateCritic
from sb3_ppo_ext.language.training.token_update import EagerGradients, SequenceUpdate
from sb3_ppo_ext.policies.family import SequencePolicy
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Update

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy
    from sb3_ppo_ext.ppox import PPOX
    from sb3_ppo_ext.rollout.actors import Actor


class Costs(NamedTuple):
    """Seconds on one type of device."""

    saved_per_state: float  # token, layer and channel trained on
    saved_per_decoded_layer: float  # and token
    compile_time_per_layer: float  # of one graph


# By type of device: of a GPT-2 of 4 layers of width 128 on one thread, and of the shape of Qwen2-0.5B on an H200.
COSTS = {"cpu": Costs(40e-9, 1e-3, 7.5), "cuda": Costs(1e-9, 1e-3, 1.6)}


class Compilable(SequencePolicy):
    """What ``LanguageModelPolicy`` adds to be compiled."""

    lm: CausalLM
    prompt_length: int
    responses: ResponseSpace

    def compiling_saves(self, model: PPOX, epochs: int, steps: int) -> tuple[float, float]:
        """See ``SequencePolicy``."""
        config, longest = self.lm.plain.config.get_text_config(), self.responses.max_new_tokens
        layers = config.num_hidden_layers
        slots = epochs * model.n_steps * model.n_envs * (self.prompt_length + longest)
        costs = COSTS[model.device.type]
        saved = slots * layers * config.hidden_size * costs.saved_per_state
        saved += steps * longest * layers * costs.saved_per_decoded_layer
        return saved, 2 * layers * costs.compile_time_per_layer

    def compiled_actor(self, graphs: Graphs, n_envs: int) -> Actor:
        """See ``SequencePolicy``."""
        decoder = RecordedDecoder if isinstance(graphs, DeviceGraphs) else CompiledDecoder
        return CompiledSequenceActor(cast("LanguageModelPolicy", self), graphs, n_envs, decoder)

    def compiled_update(self, rollout: Rollout, eager: Update, batch_size: int, graphs: Graphs) -> Update:
        """See ``SequencePolicy``."""
        assert isinstance(eager, SequenceUpdate) and isinstance(eager.gradients, EagerGradients)
        rows = min(batch_size, rollout.size)
        if eager.max_tokens is not None:
            rows = min(max(eager.max_tokens // (self.prompt_length + self.responses.max_new_tokens), 1), rows)
        apart = isinstance(cast("LanguageModelPolicy", self).critic, SeparateCritic)
        beside = apart and not isinstance(graphs, DeviceGraphs) and torch.get_num_threads() > 1
        gradients = (HalvedGradients if beside else CompiledGradients)(eager.gradients, graphs, rows)
        gradients.prepare(rollout.rows, eager.knobs.values)
        return replace(eager, gradients=gradients)
