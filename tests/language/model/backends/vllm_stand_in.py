"""What ``vllm`` has of names that are used, over a model of transformers: ids in, ids and log-probabilities out.

It errs as vLLM would: an engine that sleeps does not answer, and what is kept of a prompt outlives new weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

__version__ = "0.0.stand.in"


@dataclass
class SamplingParams:
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    allowed_token_ids: list[int] | None = None


class Logprob(NamedTuple):
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class CompletionOutput(NamedTuple):
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None


class RequestOutput(NamedTuple):
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class LLM:
    """One worker, whose calls are recorded."""

    made: list[LLM] = []  # noqa: RUF012  # of one test
    keeps_cache = False

    def __init__(
        self,
        model: str,
        *,
        skip_tokenizer_init: bool = False,
        dtype: str = "auto",
        logprobs_mode: str = "raw_logprobs",
        enable_sleep_mode: bool = False,
        gpu_memory_utilization: float = 0.9,
    ) -> None:
        assert skip_tokenizer_init and logprobs_mode == "processed_logprobs" and dtype == "float32"
        self.folder, self.can_sleep, self.asleep = model, enable_sleep_mode, False
        self.calls: list[str] = []
        self.parameters: list[SamplingParams] = []
        self.kept: dict[tuple[int, ...], Tensor] = {}  # prompt -> logits after it
        self._read()
        self.made.append(self)

    def _read(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.folder)

    def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        assert method == "reload_weights" and not self.asleep
        self.calls.append(method)
        self._read()
        return [None]

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        self.calls.append("reset_prefix_cache")
        if not self.keeps_cache:
            self.kept.clear()
        return not self.keeps_cache

    def sleep(self, level: int = 1) -> None:
        assert self.can_sleep and level == 1
        self.calls.append("sleep")
        self.asleep = True

    def wake_up(self, tags: list[str] | None = None) -> None:
        assert self.asleep
        self.calls.append("wake_up")
        self.asleep = False

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams] | None = None, *,
        use_tqdm: bool = True, lora_request: Any = None,
    ) -> list[RequestOutput]:  # fmt: skip
        assert not self.asleep and sampling_params is not None
        self.calls.append("generate")
        self.parameters = sampling_params
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        rows = [self._completion(prompt, params) for prompt, params in zip(ids, sampling_params, strict=True)]
        return [RequestOutput(prompt, [row]) for prompt, row in zip(ids, rows, strict=True)]

    @torch.no_grad()
    def _completion(self, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        assert params.ignore_eos and not params.detokenize and params.logprobs == 0 and params.seed is not None
        generator = torch.Generator().manual_seed(params.seed)
        tokens: list[int] = []
        entries: list[dict[int, Logprob]] = []
        while len(tokens) < (params.max_tokens or 0) and not set(tokens) & set(params.stop_token_ids):
            logits = self._logits(prompt + tokens, keep=not tokens) / params.temperature
            if params.allowed_token_ids is not None:
                logits = logits[params.allowed_token_ids]  # the first ones
            log_p = logits.log_softmax(-1)
            tokens.append(int(torch.multinomial(log_p.exp(), 1, generator=generator)))
            entries.append({tokens[-1]: Logprob(float(log_p[tokens[-1]]))})
        return CompletionOutput(tokens, entries)

    def _logits(self, ids: list[int], *, keep: bool) -> Tensor:
        if keep and tuple(ids) in self.kept:
            return self.kept[tuple(ids)]
        logits: Tensor = self.model(torch.tensor([ids])).logits[0, -1]
        if keep:
            self.kept[tuple(ids)] = logits
        return logits


def module() -> ModuleType:
    """The stand-in as the module ``vllm``."""
    found = ModuleType("vllm")
    vars(found).update(LLM=LLM, SamplingParams=SamplingParams, __version__=__version__)
    return found
