"""Compiled graphs of language models: the gradients of an update, and the tokens of a rollout one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sb3_ppo_ext.engines.cpu.libraries import Call
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.fingerprints import fingerprint
from sb3_ppo_ext.engines.graph_cache import Function, Graph, Graphs
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of
from sb3_ppo_ext.engines.update_inputs import knob_tensors
from sb3_ppo_ext.language.engines.traced_tokens import (
    TokenDraw,
    TokenGradient,
    constants_of,
    draw_inputs,
    prepared_for,
    require_one_precision,
    require_traceable,
    trained_of,
)
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK
from sb3_ppo_ext.language.model.cache import PreallocatedLayer
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.generation import Decoder
from sb3_ppo_ext.language.training.micro_batches import MicroBatch, lengths_of, mapped, slots_of, split
from sb3_ppo_ext.language.training.token_update import EagerGradients
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.objective.terms import KnobValues

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

# A graph may compute so many slots for each that an eager pass would: beyond that, padding eats what compiling saves.
SLACK = 1.25
DECODING = "decoding"

Gradient = Callable[[Inputs], list[Tensor]]  # with the inputs and results of ``TokenGradient``


class CompiledGradients:
    """Gradients by graphs of ``rows`` responses, [rows / branches, P] and [rows, width].

    ``branches`` of them share a prompt. Widths are the greatest length of a response and half of it. Minibatches that
    would be mostly padding are left to ``eager``.
    """

    def __init__(self, eager: EagerGradients, graphs: Graphs, rows: int, branches: int = 1) -> None:
        self.eager = eager
        self.update = eager.update
        self.policy = self.update.adapter.policy
        self.graphs = graphs
        self.rows, self.branches = rows, branches
        self.prompt_length = self.policy.prompt_length
        longest = self.policy.responses.max_new_tokens
        self.widths = sorted({math.ceil(longest / 2), longest})
        require_traceable(self.policy)
        require_one_precision(self.policy)
        if self.update.adapter.full_kl:
            raise CompileError("the exact KL to the reference over the vocabulary is not compiled")
        trained = trained_of(self.policy)
        self.trained = list(trained.values())
        self.calls: dict[int, Gradient] = {}
        self._fixed: Inputs = {
            "parameters": {name: parameter.detach() for name, parameter in trained.items()},
            "constants": constants_of(self.policy),
        }

    def prepare(self, minibatch: Minibatch, knobs: KnobValues) -> None:
        """Compiles the graph that fits the longest response of a rollout; ``CompileError`` where that fails."""
        width = self._width(minibatch)
        first = list(range(min(self.rows, len(minibatch.action)) // self.branches))
        example, *_ = split(minibatch, [first], partial(self._shaped, width=width), loss_mean="token")
        self.calls[width] = self._compiled(self._inputs(example, knobs))

    def _compiled(self, inputs: Inputs) -> Gradient:
        call = self._graph("gradient of tokens", TokenGradient(self.update.adapter, self.update.objective), inputs).call
        return lambda inputs: call(tensors_of(inputs))

    def _graph(self, kind: str, function: Function, inputs: Inputs) -> Graph:
        objective, entropy_grad = self.update.objective, self.update.adapter.entropy_grad
        return graph_of(self.graphs, kind, function, inputs, self.policy, (objective, entropy_grad))

    def split(self, minibatch: Minibatch) -> Iterable[MicroBatch]:
        """Micro-batches of the shape of a graph, or those of ``eager``."""
        width = min((width for width in self.calls if width >= self._width(minibatch)), default=None)
        count, at_once = len(minibatch.action) // self.branches, self.rows // self.branches
        groups = [list(range(start, min(start + at_once, count))) for start in range(0, count, at_once)]
        each = self.prompt_length + self.branches * (width or 0)
        if width is None or len(groups) * at_once * each > SLACK * self._slots(minibatch):
            return self.eager.split(minibatch)
        return split(minibatch, groups, partial(self._shaped, width=width), self.update.settings.loss_mean)

    def add(self, micro_batch: MicroBatch, knobs: KnobValues) -> Statistics:
        """Adds the micro-batch's gradient to that of the parameters; its statistics."""
        rows, width = micro_batch.minibatch.action.shape
        prompt = micro_batch.minibatch.observation[ATTENTION_MASK].shape[1]  # type: ignore[index]  # a dict
        call = self.calls.get(width)
        if call is None or (rows, prompt) != (self.rows, self.prompt_length):
            return self.eager.add(micro_batch, knobs)
        row, *gradients = call(self._inputs(micro_batch, knobs))
        before = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        if before:
            torch._foreach_add_(before, gradients)
        else:
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                parameter.grad = gradient
        return Statistics.of_row(row)

    def _inputs(self, micro_batch: MicroBatch, knobs: KnobValues) -> Inputs:
        rows = micro_batch.minibatch
        if not self.update.adapter.with_reference:
            rows = rows._replace(ref_log_prob=None)
        prepared, numbers = prepared_for(self.policy, rows), knob_tensors(knobs, rows.action.device)
        return {**self._fixed, "rows": rows, "prepared": prepared, "share": micro_batch.share, "knobs": numbers}

    def _width(self, minibatch: Minibatch) -> int:
        """The smallest width that holds the longest of the responses."""
        longest = lengths_of(minibatch)[:, 1].max()
        return next(width for width in self.widths if width >= longest)

    def _slots(self, minibatch: Minibatch) -> int:
        """The slots that an eager pass computes, or at least has to."""
        if self.update.settings.micro_batch_tokens is not None:
            return int(slots_of(minibatch).sum())
        prompt, response = lengths_of(minibatch).max(axis=0)
        return int(len(minibatch.action) // self.branches * (prompt + self.branches * response))

    def _shaped(self, minibatch: Minibatch, width: int) -> Minibatch:
        """The rows at the width of a graph, filled up with rows of nothing but padding."""
        missing = self.rows - len(minibatch.action)

        def filled(tensor: Tensor, rows: int) -> Tensor:
            return pad(tensor, (0, 0, 0, rows)) if missing else tensor

        return mapped(
            minibatch,
            lambda prompt: filled(prompt, missing // self.branches),
            lambda token: filled(token[:, :width], missing).contiguous(),
        )


def graph_of(
    graphs: Graphs, kind: str, function: Function, inputs: Inputs, policy: LanguageModelPolicy, plan: Any = None
) -> Graph:
    """The graph of a function, compiled anew only where the networks have changed."""
    return graphs.get(kind, function, inputs, policy.lm, (plan, fingerprint(policy.critic)))


class CompiledDecoder(Decoder):
    """A decoder that draws every token after the first of a response by a graph, over a cache of fixed size."""

    compacts = False

    def __init__(
        self, model: CausalLM, seen: Tensor, *args: Any, policy: LanguageModelPolicy, graphs: Graphs, **kwargs: Any
    ) -> None:
        room = policy.prompt_length + policy.responses.max_new_tokens
        super().__init__(model, pad(seen, (0, room - seen.shape[1])), *args, **kwargs)
        self.policy = policy
        self.graphs = graphs
        self.call: Call | None = None

    @property
    def layers(self) -> list[PreallocatedLayer]:
        """The layers of the cache; ``require_traceable`` refuses models with others."""
        return [layer for layer in self.cache.layers if isinstance(layer, PreallocatedLayer)]

    def draw(self, ids: Tensor, until: int, noise: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The token [B] after ``ids``, its log-probability, and value."""
        if not self.cache.get_seq_length():
            return super().draw(ids, until, noise)
        drawn, log_prob, *value = self.by_graph(ids[:, 0], until - 1, noise)
        return drawn, log_prob, value[0] if value else None

    def by_graph(self, token: Tensor, slot: int, noise: Tensor) -> list[Tensor]:
        """The results of ``TokenDraw`` for ``token`` [B] at that slot of the cache."""
        if self.call is None:
            rest = {"seen": self.seen, "token": token.contiguous(), "slot": torch.tensor(0), "noise": noise}
            inputs = draw_inputs(self.policy, self.layers, **rest)
            self.call = graph_of(self.graphs, DECODING, TokenDraw(self.policy), inputs, self.policy).call
            self._tensors = tensors_of(inputs)
        self._tensors[-3:] = token, torch.tensor(slot), noise
        return self.call(self._tensors)
