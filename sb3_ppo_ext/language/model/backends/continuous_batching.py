"""Responses by the continuous batching of transformers: a response that has ended makes room for the next one at once.

The model is the trained one's tensors, and where that has adapters, merged copies of these layers' weights.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from sb3_ppo_ext.language.model.backends.structure import take_weights
from sb3_ppo_ext.language.model.generators import Generated, Request, SamplerError
from sb3_ppo_ext.unknown_arguments import refuse_unknown

PAGE = 32  # tokens
PREFILLED = 2048  # tokens of prompts in a pass, at most; attention without a flash kernel takes their square in memory
POLL = 1.0  # seconds
DECIDED = ("return_logprobs", "seed")  # settings of transformers that are no options


class ContinuousBatchingGenerator:
    """A ``Generator``; the ``options`` are fields of transformers' ``ContinuousBatchingConfig``."""

    def __init__(self, model: PreTrainedModel, **options: Any) -> None:
        """Draws a token, so that a model that cannot be run this way is a ``ValueError`` now."""
        if not hasattr(transformers, "ContinuousBatchingConfig"):
            raise ValueError(
                f'sampler="continuous_batching": transformers {transformers.__version__} has none of the kind that is '
                'used here; pip install -U "transformers>=5.24"'
            )
        known = [name for name in vars(transformers.ContinuousBatchingConfig()) if name not in DECIDED]
        try:
            refuse_unknown('sampler="continuous_batching"', options, known)
        except TypeError as error:
            raise ValueError(str(error)) from None
        self.model, self.options = model, options
        self.version, self.vocab_size = 0, 0
        head = model.get_output_embeddings()
        head.register_forward_hook(lambda _, __, logits: logits[..., : self.vocab_size])
        self._require_works()

    def _require_works(self) -> None:
        try:
            self.generate([[0]], Request(1, 1, 1.0, (), 0))
        except Exception as error:  # whatever transformers raises for a model that it was not made for
            raise ValueError(
                f'sampler="continuous_batching" cannot run a {type(self.model).__name__} with attention '
                f"{self.model.config._attn_implementation!r} (transformers {transformers.__version__}): {error}. "
                'Llama, Qwen and GPT-2 are among the models that it runs; pass sampler="auto" or None for others'
            ) from error

    def update_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Takes the tensors themselves: there is no second copy of weights that have no adapter."""
        take_weights(self.model, weights)
        self.version = version

    def generate(self, prompts: list[list[int]], request: Request) -> Generated:
        """A response to each of the prompts. The seed is the next number of torch's generator, which moves by that."""
        self.vocab_size = request.vocab_size
        seed = int(torch.randint(2**31 - 1, ()))
        device = self.model.device
        devices, kind = ([], "cuda") if device.type == "cpu" else ([device], device.type)
        if devices:  # transformers computes on a stream of its own, which does not wait for the update of the weights
            torch.get_device_module(device).synchronize(device)
        # transformers seeds the generators of the process, and collects its garbage at the end.
        with torch.random.fork_rng(devices, device_type=kind), fast_collections():
            outputs = self._outputs(prompts, request, seed)
        tokens = [list(output.generated_tokens) for output in outputs]
        return Generated(tokens, [list(output.logprobs) for output in outputs], self.version)

    def _outputs(self, prompts: list[list[int]], request: Request, seed: int) -> list[Any]:
        batching = transformers.ContinuousBatchingConfig(
            return_logprobs=True, seed=seed, **(room_for(prompts, request.max_new_tokens) | self.options)
        )
        model: Any = self.model
        manager = model.init_continuous_batching(
            generation_config=generation_config(request), continuous_batching_config=batching
        )
        # All requests are there before the first step: with the seed, what is drawn depends on them alone.
        names = manager.add_requests(prompts, max_new_tokens=request.max_new_tokens)
        found: dict[str, Any] = {}
        manager.start()
        try:
            while len(found) < len(names):
                if (output := manager.get_result(timeout=POLL)) is not None:
                    require_finished(output)
                    found[output.request_id] = output
                elif not manager.is_running():
                    raise SamplerError("the continuous batching of transformers has stopped; its log has the reason")
        finally:
            manager.stop(block=True)
        return [found[name] for name in names]


@contextmanager
def fast_collections() -> Iterator[None]:
    """Garbage collections look at new objects alone: two over all of a training's objects take a second."""
    frozen = gc.get_freeze_count() > 0  # by the user
    if not frozen:
        gc.freeze()
    try:
        yield
    finally:
        if not frozen:
            gc.unfreeze()


def require_finished(output: Any) -> None:
    """``SamplerError`` with transformers' reason for a response that it has not drawn."""
    if output.error is not None or not output.is_finished():
        raise SamplerError(f"the continuous batching of transformers has failed: {output.error}")


def generation_config(request: Request) -> GenerationConfig:
    """The whole distribution at the request's temperature, until one of its end tokens."""
    return GenerationConfig(
        max_new_tokens=request.max_new_tokens, do_sample=True, temperature=request.temperature, top_k=0, top_p=1.0,
        eos_token_id=list(request.end_tokens), pad_token_id=request.pad_token_id,
    )  # fmt: skip


def room_for(prompts: list[list[int]], max_new_tokens: int) -> dict[str, int]:
    """Settings with as much memory as these prompts and their responses take: on its own, transformers takes all."""
    pages = sum(-(-(len(prompt) + max_new_tokens) // PAGE) + 1 for prompt in prompts)
    return {"page_size": PAGE, "num_blocks": pages, "max_batch_tokens": max(PREFILLED, len(prompts))}
