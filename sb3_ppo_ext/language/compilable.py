"""What makes ``LanguageModelPolicy`` one that can be compiled: how much that saves, and who acts and trains then."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from sb3_ppo_ext.device.graphs import DeviceGraphs
from sb3_ppo_ext.graphs import Graphs
from sb3_ppo_ext.language.compiled import CompiledDecoder, CompiledGradients, CompiledSequenceActor
from sb3_ppo_ext.language.model import CausalLM
from sb3_ppo_ext.language.recorded import RecordedDecoder
from sb3_ppo_ext.language.spaces import ResponseSpace
from sb3_ppo_ext.language.update import EagerGradients, SequenceUpdate
from sb3_ppo_ext.minibatches import Rollout
from sb3_ppo_ext.sequences import SequencePolicy
from sb3_ppo_ext.update import Update

if TYPE_CHECKING:
    from sb3_ppo_ext.actors import Actor
    from sb3_ppo_ext.language.policy import LanguageModelPolicy
    from sb3_ppo_ext.ppox import PPOX

# Seconds, measured on one thread with a GPT-2 of 4 layers of width 128. On an H200 with a model of the shape of
# Qwen2-0.5B it was 1e-9, 1e-3 and 1.6; there "auto" does not ask.
SAVED_PER_STATE = 40e-9  # token, layer and channel trained on
SAVED_PER_DECODED_LAYER = 1e-3  # and token
COMPILE_TIME_PER_LAYER = 7.5  # of one graph


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
        saved = slots * layers * config.hidden_size * SAVED_PER_STATE
        return saved + steps * longest * layers * SAVED_PER_DECODED_LAYER, 2 * layers * COMPILE_TIME_PER_LAYER

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
        gradients = CompiledGradients(eager.gradients, graphs, rows)
        gradients.prepare(rollout.rows, eager.knobs.values)
        return replace(eager, gradients=gradients)
