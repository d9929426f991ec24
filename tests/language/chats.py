"""A tokenizer of bytes with a chat template like Qwen's, tools included, made in place."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

CHAT = (
    "{% if tools %}<|start|>system\n# Tools{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}"
    "{{ '<|end|>\n' }}{% endif %}{% for m in messages %}<|start|>{{ ('user' if m.role == 'tool' else m.role) + '\n' }}"
    "{% if m.role == 'tool' %}<tool_response>{{ m.content }}</tool_response>{% else %}{{ m.content or '' }}{% endif %}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
    "{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
EOS = 1


@functools.cache
def tokenizer(template: str | None = CHAT) -> Any:
    """ "<pad>" 0, "<|end|>" 1, "<|start|>" 2, then the 256 bytes."""
    names = ["<pad>", "<|end|>", "<|start|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    built = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=built, pad_token="<pad>", eos_token="<|end|>", extra_special_tokens=["<|start|>"]
    )
    if template is not None:
        wrapped.chat_template = template
    return wrapped


def model(positions: int = 256) -> PreTrainedModel:
    """A random model of this tokenizer's vocabulary."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=259, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=positions, bos_token_id=EOS, eos_token_id=EOS, pad_token_id=0,
        )  # fmt: skip
        built: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return built


def response(text: str, length: int, *, ends: bool = True) -> Any:
    """The text as an action [length], with the end token where it ``ends``."""
    ids = tokenizer()(text, add_special_tokens=False)["input_ids"] + [EOS] * ends
    assert len(ids) <= length and (ends or len(ids) == length)
    return np.array(ids + [0] * (length - len(ids)))


def text_of(env: Any) -> str:
    """The transcript of an environment as text, special tokens included."""
    text: str = tokenizer().decode(env.unwrapped.ids)
    return text


def plain_text(ids: list[int]) -> str:
    """The text of ids, without special tokens."""
    text: str = tokenizer().decode(ids, skip_special_tokens=True)
    return text
