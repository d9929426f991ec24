"""Language models of a few thousand parameters, made in place: there is nothing to download."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from sb3_ppo_ext.language.model.tokens import Tokens

VOCABULARY = 24
EOS, PAD = 1, 0
FAMILIES = ("gpt2", "llama", "qwen2", "qwen3", "pythia")


def config(family: str, vocabulary: int = VOCABULARY, size: int = 16) -> PreTrainedConfig:
    shared: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
    if family == "gpt2":
        return GPT2Config(n_embd=size, n_layer=2, n_head=2, n_positions=64, **shared)
    rotary: dict[str, Any] = {
        **{"hidden_size": size, "intermediate_size": 2 * size, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"max_position_embeddings": 64, **shared},
    }
    if family == "pythia":
        return GPTNeoXConfig(**rotary, use_parallel_residual=True)
    grouped = {**rotary, "num_key_value_heads": 1}
    if family == "qwen3":
        return Qwen3Config(head_dim=size // 2, **grouped)
    return LlamaConfig(**grouped) if family == "llama" else Qwen2Config(**grouped)


def model(
    family: str = "gpt2",
    seed: int = 0,
    *,
    vocabulary: int = VOCABULARY,
    size: int = 16,
    sharpness: float = 10.0,
) -> PreTrainedModel:
    """Random, but far from uniform: every weight matrix is scaled up, so that a mistake shows in nats."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        built: PreTrainedModel = AutoModelForCausalLM.from_config(config(family, vocabulary, size)).float()
        with torch.no_grad():
            for parameter in built.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(sharpness)
    return built


def never_ending(seed: int, *, ending: float = -400.0) -> PreTrainedModel:
    """A GPT-2 that gives the padding token no chance, its logit is near -400; and that of end-of-text ``ending``."""
    built = model("gpt2", seed)
    words, bias = built.get_parameter("transformer.wte.weight"), built.get_parameter("transformer.ln_f.bias")
    with torch.no_grad():
        bias[0] = 20.0
        words[:, 0] = 0.0
        for token, logit in ((PAD, -400.0), (EOS, ending)):
            words[token] = 0.0
            words[token, 0] = logit / 20.0
    return built


def ragged_prompts(rows: int = 4, length: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random prompts [B, P] of 2 to P tokens, padded on the left, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, length + 1, (rows,), generator=generator)
    lengths[0] = length
    mask = torch.arange(length)[None] >= length - lengths[:, None]
    ids = torch.randint(2, VOCABULARY, (rows, length), generator=generator)
    return ids.masked_fill(~mask, PAD), mask


def ragged_tokens(rows: int = 4, prompt: int = 6, response: int = 5, seed: int = 0) -> Tokens:
    """Random prompts and responses of 1 to L tokens."""
    generator = torch.Generator().manual_seed(seed + 1)
    lengths = torch.randint(1, response + 1, (rows,), generator=generator)
    mask = torch.arange(response)[None] < lengths[:, None]
    ids = torch.randint(2, VOCABULARY, (rows, response), generator=generator)
    return Tokens(*ragged_prompts(rows, prompt, seed), ids.masked_fill(~mask, PAD), mask)


def one_block() -> PreTrainedModel:
    settings = config("gpt2")
    settings.n_layer = 1  # compiles in half the time
    built: PreTrainedModel = AutoModelForCausalLM.from_config(settings)
    return built
