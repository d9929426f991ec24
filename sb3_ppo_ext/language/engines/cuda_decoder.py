"""Responses on a GPU: every token after the first is one launch of a recorded graph instead of thousands of kernels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sb3_ppo_ext.engines.cuda.graph_cache import DeviceGraphs
from sb3_ppo_ext.engines.fingerprints import fingerprint
from sb3_ppo_ext.engines.substitution import refuse_writes
from sb3_ppo_ext.engines.tracing import tensors_of, trace
from sb3_ppo_ext.language.engines.compiled import DECODING, CompiledDecoder
from sb3_ppo_ext.language.engines.traced_tokens import TokenDraw, draw_inputs, weights_of
from sb3_ppo_ext.language.model.cache import PreallocatedLayer
from sb3_ppo_ext.language.model.drawing import precision_on

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


class RecordedDraw:
    """A recording of one draw, with the cache and the other tensors that it reads, and those that it writes."""

    def __init__(
        self, policy: LanguageModelPolicy, graphs: DeviceGraphs, layers: list[PreallocatedLayer], seen: Tensor
    ) -> None:
        """Records over the tensors of ``layers`` and a copy of ``seen`` [B, S]."""
        rows, device = len(seen), seen.device
        self.cache = [(layer.all_keys, layer.all_values) for layer in layers]
        self.seen = seen.clone()
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        self.slot = torch.zeros((), dtype=torch.long, device=device)
        self.noise = torch.full((rows,), 0.5, dtype=precision_on(device), device=device)
        rest = {"seen": self.seen, "token": self.token, "slot": self.slot, "noise": self.noise}
        inputs = draw_inputs(policy, layers, **rest)
        tensors = tensors_of(inputs)
        traced = trace(TokenDraw(policy), inputs, policy.lm)
        refuse_writes(traced, inputs)
        (returned,) = next(iter(reversed(traced.graph.nodes))).args
        shapes = [node.meta["val"] for node in returned]
        self.results = [torch.zeros(shape.shape, dtype=shape.dtype, device=device) for shape in shapes]
        with graphs.while_compiling():
            call = graphs.recordings.compile(traced, tensors)

        def run() -> None:
            for target, result in zip(self.results, call(*tensors), strict=True):
                target.copy_(result)

        changed = [*self.results, *inputs["keys"], *inputs["values"]]
        self._replay = graphs.recordings.recorder.record(run, changed)

    def begin(self, seen: Tensor) -> None:
        """Begins with other prompts, of which ``seen`` is the mask."""
        self.seen.copy_(seen)
        for pair in self.cache:
            for tensor in pair:
                tensor.zero_()  # a NaN that is masked would still be a NaN

    def __call__(self, token: Tensor, slot: int, noise: Tensor) -> list[Tensor]:
        """Copies of the results: the next token overwrites them."""
        self.token.copy_(token)
        self.slot.fill_(slot)
        self.noise.copy_(noise)
        self._replay()
        return [result.clone() for result in self.results]


class RecordedDecoder(CompiledDecoder):
    """A decoder by one recording for all responses to as many prompts."""

    graphs: DeviceGraphs
    shares_prompts = False

    def __init__(self, *args: Any, policy: LanguageModelPolicy, graphs: DeviceGraphs, **kwargs: Any) -> None:
        super().__init__(*args, policy=policy, graphs=graphs, **kwargs)
        addresses = tuple(tensor.data_ptr() for tensor in weights_of(policy).values())
        self.key = (DECODING, len(self.seen), addresses, fingerprint(policy.lm), fingerprint(policy.critic))
        self.recorded: RecordedDraw | None = graphs.recordings.known.get(self.key)
        if self.recorded is not None:
            self.recorded.begin(self.seen)
            for layer, tensors in zip(self.layers, self.recorded.cache, strict=True):
                layer.tensors = tensors

    def by_graph(self, token: Tensor, slot: int, noise: Tensor) -> list[Tensor]:
        """The results of ``TokenDraw`` for ``token`` [B] at that slot of the cache."""
        if self.recorded is None:
            make = partial(RecordedDraw, self.policy, self.graphs, self.layers, self.seen)
            self.recorded = self.graphs.recordings.get(self.key, make)
        return self.recorded(token, slot, noise)
