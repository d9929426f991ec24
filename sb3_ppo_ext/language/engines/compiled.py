"""Language models through compiled graphs: the update's gradients, and a rollout's tokens one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sb3_ppo_ext.engines.cpu.libraries import Call, CompileError
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
    require_traceable,
    trained_of,
)
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.generation import Decoder, RoomyLayer
from sb3_ppo_ext.language.training.micro_batches import MicroBatch, in_parts, lengths_of, mapped
from sb3_ppo_ext.language.training.token_update import EagerGradients, Piece
from sb3_ppo_ext.objective.batch import Minibatch, Observation
from sb3_ppo_ext.objective.terms import KnobValues
from sb3_ppo_ext.rollout.actors import Acted, EagerActor

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

# Slots that a graph may compute for each that an eager pass would: beyond that, padding eats what compiling saves.
SLACK = 1.25
DECODING = "decoding"

Gradient = Callable[[Inputs], list[Tensor]]  # inputs and results are those of ``TokenGradient``


class CompiledGradients:
    """As ``EagerGradients``, by a graph for parts of ``rows`` responses [rows, P] and [rows, width].

    Widths are the greatest length of a response and half of it. What would be mostly padding is left to ``eager``.
    """

    def __init__(self, eager: EagerGradients, graphs: Graphs, rows: int) -> None:
        self.eager = eager
        self.policy = eager.adapter.policy
        self.graphs = graphs
        self.rows = rows
        self.prompt_length = self.policy.prompt_length
        longest = self.policy.responses.max_new_tokens
        self.widths = sorted({math.ceil(longest / 2), longest})
        require_traceable(self.policy)
        if eager.adapter.full_kl:
            raise CompileError("the exact KL to the reference over the vocabulary is not compiled")
        self.trained = list(trained_of(self.policy).values())
        self.calls: dict[int, Gradient] = {}
        self._fixed: Inputs = {
            "parameters": {name: one.detach() for name, one in trained_of(self.policy).items()},
            "constants": constants_of(self.policy),
        }

    def prepare(self, minibatch: Minibatch, knobs: KnobValues) -> None:
        """Compiles the graph that fits the longest response of a rollout; ``CompileError`` where that fails."""
        width = self._width(minibatch)
        first = list(range(min(self.rows, len(minibatch.action))))
        example, *_ = in_parts(minibatch, [first], partial(self._shaped, width=width), loss_mean="token")
        self.calls[width] = self._compiled(self._inputs(example, knobs))

    def _compiled(self, inputs: Inputs) -> Gradient:
        call = self._graph("gradient of tokens", TokenGradient, inputs).call
        return lambda inputs: call(tensors_of(inputs))

    def _graph(self, kind: str, function: type[TokenGradient], inputs: Inputs) -> Graph:
        objective, entropy_grad = self.eager.objective, self.eager.adapter.entropy_grad
        made = function(self.policy, objective, entropy_grad=entropy_grad)
        return graph_of(self.graphs, kind, made, inputs, self.policy, (objective, entropy_grad))

    def parts(self, minibatch: Minibatch, *, loss_mean: str, max_tokens: int | None) -> Iterable[MicroBatch]:
        """Of the shape of a graph, or as ``eager`` would have them."""
        width = min((width for width in self.calls if width >= self._width(minibatch)), default=None)
        count = len(minibatch.action)
        groups = [list(range(start, min(start + self.rows, count))) for start in range(0, count, self.rows)]
        if width is None or len(groups) * self.rows * (self.prompt_length + width) > SLACK * self._slots(
            minibatch, max_tokens
        ):
            return self.eager.parts(minibatch, loss_mean=loss_mean, max_tokens=max_tokens)
        return in_parts(minibatch, groups, partial(self._shaped, width=width), loss_mean=loss_mean)

    def add(self, part: MicroBatch, knobs: KnobValues) -> Piece:
        """See ``Gradients``."""
        rows, width = part.minibatch.action.shape
        prompt = part.minibatch.observation[ATTENTION_MASK].shape[1]  # type: ignore[index]  # a dict
        call = self.calls.get(width)
        if call is None or (rows, prompt) != (self.rows, self.prompt_length):
            return self.eager.add(part, knobs)
        loss, row, extra, deviation, *gradients = call(self._inputs(part, knobs))
        before = [parameter.grad for parameter in self.trained if parameter.grad is not None]
        if before:
            torch._foreach_add_(before, gradients)
        else:
            for parameter, gradient in zip(self.trained, gradients, strict=True):
                parameter.grad = gradient
        return Piece(loss, row, extra, deviation)

    def _inputs(self, part: MicroBatch, knobs: KnobValues) -> Inputs:
        minibatch = part.minibatch
        if not self.eager.adapter.with_reference:
            minibatch = minibatch._replace(ref_log_prob=None)
        device = minibatch.action.device
        given = {"part": minibatch, "prepared": prepared_for(self.policy, minibatch), "share": part.share}
        return {**self._fixed, **given, "knobs": knob_tensors(knobs, device)}

    def _width(self, minibatch: Minibatch) -> int:
        """The smallest that holds the longest of the responses."""
        longest = lengths_of(minibatch)[:, 1].max()
        return next(width for width in self.widths if width >= longest)

    def _slots(self, minibatch: Minibatch, max_tokens: int | None) -> int:
        """That an eager pass computes, or at least has to."""
        lengths = lengths_of(minibatch)
        return int(lengths.sum() if max_tokens is not None else len(lengths) * lengths.max(axis=0).sum())

    def _shaped(self, part: Minibatch, width: int) -> Minibatch:
        """Rows of nothing but padding fill it up."""
        missing = self.rows - len(part.action)

        def filled(tensor: Tensor) -> Tensor:
            return pad(tensor, (0, 0, 0, missing)) if missing else tensor

        return mapped(part, filled, lambda token: filled(token[:, :width]).contiguous())


def graph_of(
    graphs: Graphs, kind: str, function: Function, inputs: Inputs, policy: LanguageModelPolicy, plan: Any = None
) -> Graph:
    """Compiled anew only where the networks have changed: the policy itself keeps clocks and the like."""
    return graphs.get(kind, function, inputs, policy.lm, (plan, fingerprint(policy.critic)))


class CompiledDecoder(Decoder):
    """As ``Decoder``, every token after the first of a response by a graph over a cache of fixed size."""

    def __init__(
        self, model: CausalLM, seen: Tensor, *args: Any, policy: LanguageModelPolicy, graphs: Graphs, **kwargs: Any
    ) -> None:
        room = policy.prompt_length + policy.responses.max_new_tokens
        super().__init__(model, pad(seen, (0, room - seen.shape[1])), *args, **kwargs)
        self.policy = policy
        self.graphs = graphs
        self.call: Call | None = None

    @property
    def layers(self) -> list[RoomyLayer]:
        """Of the cache; ``require_traceable`` has seen that there are no others."""
        return [layer for layer in self.cache.layers if isinstance(layer, RoomyLayer)]

    def draw(self, ids: Tensor, until: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """See ``Decoder``; the same draws from torch's generator."""
        if not self.cache.get_seq_length():
            return super().draw(ids, until)
        drawn, log_prob, *value = self.by_graph(ids[:, 0], until - 1)
        return drawn, log_prob, value[0] if value else None

    def by_graph(self, token: Tensor, slot: int) -> list[Tensor]:
        """The results of ``TokenDraw`` for ``token`` [B] at that slot of the cache."""
        noise = torch.empty(len(token), self.model.vocab_size).uniform_()
        if self.call is None:
            rest = {"seen": self.seen, "token": token.contiguous(), "slot": torch.tensor(0), "noise": noise}
            inputs = draw_inputs(self.policy, self.layers, **rest)
            self.call = graph_of(self.graphs, DECODING, TokenDraw(self.policy), inputs, self.policy).call
            self._tensors = tensors_of(inputs)
        self._tensors[-3:] = token, torch.tensor(slot), noise
        return self.call(self._tensors)


class CompiledSequenceActor(EagerActor):
    """Responses by ``CompiledDecoder``, or by another like it."""

    def __init__(
        self,
        policy: LanguageModelPolicy,
        graphs: Graphs,
        n_envs: int,
        decoder: Callable[..., Decoder] = CompiledDecoder,
    ) -> None:
        """``CompileError`` where the model cannot be compiled."""
        super().__init__(policy)
        require_traceable(policy)
        self.decoder_of = partial(decoder, policy=policy, graphs=graphs)
        # One that does not fit is made anew on the way.
        if policy.responses.max_new_tokens > 1 and not graphs.knows(DECODING):
            self._compile(policy, n_envs)

    @torch.no_grad()
    def _compile(self, policy: LanguageModelPolicy, n_envs: int) -> None:
        model, device = policy.lm, policy.device
        token = torch.zeros(n_envs, 1, dtype=torch.long, device=device)
        with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            seen = torch.ones(n_envs, 2, dtype=torch.bool, device=device)
            decoder = self.decoder_of(model, seen, None, deterministic=False)
            decoder.draw(token, 1)
            decoder.draw(token, 2)

    def act(self, observation: Observation) -> Acted:
        """Responses, and value and log-probability of every token, all [N, L]."""
        with torch.no_grad():
            responses, values, log_probs = self.policy(observation, decoder_of=self.decoder_of)
        return Acted(responses.cpu().numpy(), responses, values, log_probs)
