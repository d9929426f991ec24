"""Generators: programs of their own that draw the responses of a rollout. Ids in, ids and log-probabilities out.

A generator is given the trained weights of the moment with their version; a response by another version is an error.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.generation import Response, empty_response
from sb3_ppo_ext.language.model.progress import RolloutProgress
from sb3_ppo_ext.language.model.sampling_copy import merged_weights
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning


class SamplerError(ValueError):
    """A sampler has answered with other weights than those of the policy, or not as it was asked to."""


@dataclass(frozen=True)
class Request:
    """How responses are to be drawn: from the whole distribution of the first ``vocab_size`` logits over temperature.

    A response ends with, and includes, the first of the ``end_tokens``.
    """

    max_new_tokens: int
    vocab_size: int
    temperature: float
    end_tokens: tuple[int, ...]
    pad_token_id: int


class Generated(NamedTuple):
    """The responses of a generator: token ids; log-probabilities in nats, if it has them; the version of its weights.

    The log-probabilities are those of the distribution that was sampled from, temperature applied.
    """

    token_ids: list[list[int]]
    log_probs: list[list[float]] | None
    version: int


class Generator(Protocol):
    """A program that generates: ids in, ids and log-probabilities out, never text."""

    def update_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Takes the weights by their names in the Hugging Face model, adapters merged, as this ``version``."""
        ...

    def generate(self, prompts: list[list[int]], request: Request) -> Generated:
        """A response to each of the prompts."""
        ...


BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a number


class Versions:
    """Counts the versions of a model's trained weights, which are compared by their bits.

    Counters of writes, torch's own among them, miss optimizers that step in one kernel, and writes through ``data``.
    """

    def __init__(self, model: CausalLM) -> None:
        self.model, self.number = model, 0
        self._last: tuple[Any, ...] | None = None

    def current(self) -> int:
        """The number of the weights as they are now."""
        trained = [parameter.detach() for parameter in self.model.parameters() if parameter.requires_grad]
        sums = [weights.view(BITS[weights.element_size()]).sum(dtype=torch.int64) for weights in trained]
        state = tuple(torch.stack(sums).tolist())
        if state != self._last:
            self.number, self._last = self.number + 1, state
        return self.number


class GeneratorSampler:
    """Draws by a ``Generator``, which gets the weights whenever they have changed."""

    exact = False

    def __init__(self, model: CausalLM, generator: Generator | None) -> None:
        self.trained, self.generator = model, generator
        self.versions, self.sent = Versions(model), 0
        self.warned = False

    def __deepcopy__(self, memo: dict[int, Any]) -> GeneratorSampler:
        """The sampler of a copied policy, which refuses: a generator has the weights of one policy."""
        return GeneratorSampler(copy.deepcopy(self.trained, memo), None)

    def respond(
        self,
        prompt: Tensor,
        mask: Tensor,
        request: Request,
        *,
        value_of: Callable[[Tensor], Tensor] | None = None,
        progress: RolloutProgress | None = None,
    ) -> Response:
        """Responses without values; log-probabilities are NaN where the generator has none."""
        if self.generator is None:
            raise SamplerError("this policy is a copy of another, and the generator has the weights of that one")
        if (version := self.versions.current()) != self.sent:
            self.generator.update_weights(merged_weights(self.trained), version)
            self.sent = version
        prompts = [row[seen].tolist() for row, seen in zip(prompt, mask.bool(), strict=True)]
        generated = self.generator.generate(prompts, request)
        name = type(self.generator).__name__
        if generated.version != version:
            raise SamplerError(
                f"{name} has answered with weights of version {generated.version!r}, and the policy's are of version "
                f"{version}: update_weights() has not reached what generates, or the version that it was given is not "
                "what generate() returns"
            )
        response = response_of(generated, len(prompts), request, prompt.device, name)
        if generated.log_probs is None and not self.warned:
            self.warned = True
            warnings.warn(
                f"{name} returns no log-probabilities: nothing corrects for the difference between its distribution "
                "and the policy's, and none is logged. Let generate() return those of the distribution sampled from",
                TrainingWarning,
                stacklevel=2,
            )
        if progress is not None:
            progress.after_batch(response.mask)
        return response


def response_of(generated: Generated, rows: int, request: Request, device: torch.device, name: str) -> Response:
    """The generated responses as tensors [B, L]; ``SamplerError`` for any that was not drawn as requested."""
    response = empty_response(rows, request.max_new_tokens, request.pad_token_id, device)
    if len(generated.token_ids) != rows:
        raise SamplerError(f"{name} has returned {len(generated.token_ids)} responses to {rows} prompts")
    for row, ids in enumerate(generated.token_ids):
        if reason := fault_of(ids, request):
            raise SamplerError(f"response {row} of {name} {reason}")
        response.token[row, : len(ids)] = torch.as_tensor(ids, device=device)
        response.mask[row, : len(ids)] = True
        log_probs = [float("nan")] * len(ids) if generated.log_probs is None else generated.log_probs[row]
        if len(log_probs) != len(ids):
            raise SamplerError(f"response {row} of {name} has {len(ids)} tokens and {len(log_probs)} log-probabilities")
        response.log_prob[row, : len(ids)] = torch.as_tensor(log_probs, device=device)
    return response


def fault_of(ids: list[int], request: Request) -> str | None:
    """Why a response [l] was not drawn as requested; None where it may have been."""
    if not 1 <= len(ids) <= request.max_new_tokens:
        return f"has {len(ids)} tokens; 1 to {request.max_new_tokens} were requested"
    if wrong := [token for token in ids if not 0 <= token < request.vocab_size]:
        return f"has the token {wrong[0]}, which is not among the {request.vocab_size} that may be chosen"
    ends = [token in request.end_tokens for token in ids]
    if any(ends[:-1]):
        return f"goes on after the end token {ids[ends.index(True)]}; it has to stop there"
    if not ends[-1] and len(ids) < request.max_new_tokens:
        return f"stops after {len(ids)} tokens without an end token; the end token belongs to the response"
    return None
