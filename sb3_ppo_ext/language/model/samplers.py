"""Samplers: what draws the responses of a rollout in the trained model's place. Letters: see ``causal_lm``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from sb3_ppo_ext.language.model.adapters import has_adapter
from sb3_ppo_ext.language.model.backends import BACKENDS, backend_of
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.generation import Response, generate
from sb3_ppo_ext.language.model.generators import GeneratorSampler, Request, Versions
from sb3_ppo_ext.language.model.packed_layers import Layout, fastest_layout, layouts_of
from sb3_ppo_ext.language.model.progress import RolloutProgress
from sb3_ppo_ext.language.model.sampling_copy import SamplingCopy, shapes_of

PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
TYPES = (torch.float32, torch.bfloat16)


class Sampler(Protocol):
    """What draws the responses of a rollout."""

    @property
    def exact(self) -> bool:
        """True where log-probabilities are the trained model's up to rounding; else these are computed again."""
        ...

    def respond(
        self,
        prompt: Tensor,
        mask: Tensor,
        request: Request,
        *,
        value_of: Callable[[Tensor], Tensor] | None = None,
        progress: RolloutProgress | None = None,
    ) -> Response:
        """Responses to prompts [B, P], and values where ``value_of`` can have the states."""
        ...


class CopySampler:
    """Draws from a ``SamplingCopy``; from the model itself where no layout of a copy is faster here."""

    def __init__(self, model: CausalLM, precision: str) -> None:
        self.trained, self.precision = model, precision
        self.versions, self.version = Versions(model), 0
        self.layout: Layout | None = None  # measured with the first batch
        self.prepared = False
        self.copy: SamplingCopy | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CopySampler:
        """A sampler of the copied model, which makes a copy of its own: packed weights cannot be copied."""
        return CopySampler(copy.deepcopy(self.trained, memo), self.precision)

    @property
    def exact(self) -> bool:
        """True where what draws computes in the precision in which the model is trained."""
        same = self.copy is None or self.copy.layout.dtype is self.trained.plain.dtype
        return same and self.trained.compute_dtype is None

    def respond(
        self,
        prompt: Tensor,
        mask: Tensor,
        request: Request,
        *,
        value_of: Callable[[Tensor], Tensor] | None = None,
        progress: RolloutProgress | None = None,
    ) -> Response:
        """Responses by the copy, with the weights of now."""
        self._prepare(prompt, request)
        return generate(
            self.trained if self.copy is None else self.copy.model,
            prompt,
            mask,
            max_new_tokens=request.max_new_tokens,
            eos_token_id=request.end_tokens,
            pad_token_id=request.pad_token_id,
            value_of=value_of,
            progress=progress,
        )

    def begin_with(self, layout: Layout) -> None:
        """The layout of a copy that the model has had before, unless this processor or the settings do without it."""
        if layout in layouts_of(self.trained.plain.dtype, PRECISIONS[self.precision]):
            self.layout = layout

    def _prepare(self, prompt: Tensor, request: Request) -> None:
        if not self.prepared:
            self._choose(prompt, request)
            self.prepared = True
        if self.copy is not None and (version := self.versions.current()) != self.version:
            self.copy.refresh()
            self.version = version

    def _choose(self, prompt: Tensor, request: Request) -> None:
        """Measures the layouts, each with the work that it adds, unless there is a choice, and makes the copy."""
        model, rows = self.trained, len(prompt)
        if model.plain.device.type != "cpu":
            raise ValueError(
                f"sampler={self.precision!r} with the model on {model.plain.device}: the copy is laid out for a CPU; "
                'pass sampler=None (dtype="bfloat16" and compile are what makes sampling faster there)'
            )
        own = Layout(model.plain.dtype, packed=False)
        if self.layout is None:
            scored = rows * (prompt.shape[1] + request.max_new_tokens)  # states of a pass over all that was sampled
            *shapes, head = shapes_of(model)
            chosen, steps = PRECISIONS[self.precision], request.max_new_tokens
            self.layout = fastest_layout(own, chosen, shapes, head, rows=rows, steps=steps, scored=scored)
        if self.layout != own or has_adapter(model.plain):
            self.copy = SamplingCopy(model, self.layout, rows)


def sampler_of(choice: Any, model: CausalLM) -> Sampler | None:
    """The sampler that the argument ``sampler`` of a policy names; None for the model itself."""
    if choice is None:
        return None
    if isinstance(choice, str) and choice in PRECISIONS:
        dtype = model.plain.dtype
        if dtype not in TYPES or (dtype is torch.bfloat16 and PRECISIONS[choice] is torch.float32):
            raise ValueError(
                f"sampler={choice!r} with a model in {dtype}: a copy of float32 is in float32 or bfloat16, and a copy "
                "of bfloat16 in bfloat16; other types are not copied"
            )
        return CopySampler(model, choice)
    if (backend := backend_of(choice, model)) is not None:
        return GeneratorSampler(model, backend)
    if not callable(choice):
        raise ValueError(
            f"sampler={choice!r}: {', '.join(map(repr, (*PRECISIONS, *BACKENDS)))}, None, or a function (or class) "
            "that returns a Generator is needed"
        )
    generator = choice()
    if not all(callable(getattr(generator, name, None)) for name in ("update_weights", "generate")):
        raise ValueError(
            f"sampler={choice!r} has returned a {type(generator).__name__}; a Generator has the methods "
            "update_weights() and generate()"
        )
    return GeneratorSampler(model, generator)
