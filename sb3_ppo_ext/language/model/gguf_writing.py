"""Llama-shaped models as GGUF files, for llama.cpp and the programs built on it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from sb3_ppo_ext.language.inputs import one_of
from sb3_ppo_ext.language.model.gguf_reading import SUFFIX, require_gguf
from sb3_ppo_ext.saving import save_atomically

ARCHITECTURE = "llama"
CONVERTER = "write it with save_pretrained() and convert the folder with llama.cpp's convert_hf_to_gguf.py"
PRECISIONS = {"float16": np.float16, "float32": np.float32}
FILE_TYPES = {"float32": 0, "float16": 1}  # of the matrices; vectors are float32 in either

# Of transformers' names below "model.layers.N." -> GGUF's below "blk.N.".
IN_A_BLOCK = {
    **{f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"},
    **{"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
    **{f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")},
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # types of tokens


def write_gguf(
    model: PreTrainedModel,
    tokenizer: Any,
    file: str | Path,
    *,
    precision: str = "float16",
    pre_tokenizer: str | None = None,
    name: str = "PPOX",
) -> None:
    """Writes the model, its tokenizer and chat template; the file is complete or not there.

    :param precision: of the matrices, "float16" or "float32"
    :param pre_tokenizer: llama.cpp's name for the way in which the tokenizer splits a text, "llama-bpe" for example;
        None finds out those of GPT-2 and SmolLM
    :param name: of the model, in the file's metadata
    """
    require_gguf(f"save_gguf({str(file)!r})")
    one_of(tuple(PRECISIONS), "precision", precision)
    if not str(file).endswith(SUFFIX):
        raise ValueError(f"{str(file)!r} is to be a GGUF file: give it a name that ends in {SUFFIX}")
    require_llama(model)
    vocabulary = vocabulary_of(tokenizer, int(model.config.vocab_size), pre_tokenizer)
    gguf: Any = importlib.import_module("gguf")

    def write(target: Any) -> None:
        writer = gguf.GGUFWriter(target.name, ARCHITECTURE)  # which opens files by itself
        writer.add_name(name)
        writer.add_file_type(FILE_TYPES[precision])
        _describe(writer, model)
        _add_vocabulary(writer, vocabulary, tokenizer)
        for tensor_name, tensor in tensors(model):
            kind = PRECISIONS[precision] if tensor.dim() > 1 else np.float32
            writer.add_tensor(tensor_name, tensor.float().cpu().numpy().astype(kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    save_atomically(Path(file), write)


def require_llama(model: PreTrainedModel) -> None:
    """``ValueError`` for what is no Llama, or one with parts that this writer does not have."""
    config: Any = model.config
    if config.model_type != "llama":
        raise ValueError(f"a {type(model).__name__} is not written as GGUF, Llama-shaped models are: {CONVERTER}")
    rotary = getattr(config, "rope_parameters", None) or {}
    if config.attention_bias or config.mlp_bias or rotary.get("rope_type", "default") != "default":
        raise ValueError(
            f"this {type(model).__name__} has biases or scaled rotary positions, which are not written as GGUF: "
            f"{CONVERTER}"
        )


def _describe(writer: Any, model: PreTrainedModel) -> None:
    """The shape of the model."""
    config: Any = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """GGUF's name and layout of every weight; a head that is the embedding is left out."""
    config: Any = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for path, tensor in model.state_dict().items():
        layer = path.removesuffix(".weight")
        if layer in OUTSIDE:
            if not (layer == "lm_head" and config.tie_word_embeddings):
                yield f"{OUTSIDE[layer]}.weight", tensor
            continue
        _, _, number, inside = layer.split(".", 3)
        name = IN_A_BLOCK[inside]
        yield f"blk.{number}.{name}.weight", interleaved(tensor, heads[name]) if name in heads else tensor


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """The rows [heads * d, D] of queries or keys in GGUF's order.

    transformers turns the row i of a head together with i + d / 2, llama.cpp 2 i with 2 i + 1.
    """
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def vocabulary_of(tokenizer: Any, size: int, pre_tokenizer: str | None) -> dict[str, Any]:
    """Tokens [size], their types, merges and the name of the splitting, of a byte-level BPE tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    description: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    model = description.get("model", {})
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ValueError(
            f"the tokenizer is a {type(tokenizer).__name__} and no byte-level BPE, which is what is written as GGUF: "
            f"{CONVERTER}"
        )
    named = {index: token for token, index in tokenizer.get_vocab().items()}
    if longest := [index for index in named if index >= size]:
        raise ValueError(
            f"the tokenizer has the token {max(longest)}, the model only {size}: they do not belong together"
        )
    added = {entry["id"]: entry["special"] for entry in description.get("added_tokens", [])}
    types = [
        UNUSED if index not in named else NORMAL if index not in added else CONTROL if added[index] else USER_DEFINED
        for index in range(size)
    ]
    return {
        "tokens": [named.get(index, f"[PAD{index}]") for index in range(size)],
        "types": types,
        "merges": [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]],
        "pre": pre_tokenizer or splitting(description.get("pre_tokenizer")),
    }


def splitting(description: Any) -> str:
    """llama.cpp's name of a pre-tokenizer; ``ValueError`` for one that is not known here."""
    steps = [] if description is None else description.get("pretokenizers", [description])
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    raise ValueError(
        f"the tokenizer splits texts by {kinds or 'nothing'}, whose name in llama.cpp is not known here: pass it as "
        'pre_tokenizer, "llama-bpe" for Llama 3 for example'
    )


def _add_vocabulary(writer: Any, vocabulary: dict[str, Any], tokenizer: Any) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary["pre"])
    writer.add_token_list(vocabulary["tokens"])
    writer.add_token_types(vocabulary["types"])
    writer.add_token_merges(vocabulary["merges"])
    for name, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            add(token)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    begins = tokenizer("a")["input_ids"][:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id])
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
