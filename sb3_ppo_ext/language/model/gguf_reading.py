"""Models from GGUF files, as plain models of floating-point weights that can be trained and saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from sb3_ppo_ext.optional_packages import require_packages

SUFFIX = ".gguf"


def is_gguf(source: str | Path) -> bool:
    """True where the name of a model is that of a GGUF file."""
    return str(source).endswith(SUFFIX)


def require_gguf(what: str) -> None:
    """``ImportError`` with the remedy where the package gguf is missing; ``what`` needs it."""
    require_packages(what, '"sb3_ppo_ext[gguf]"', "gguf")


def read_gguf(auto: Any, file: str | Path, dtype: str | torch.dtype) -> Any:
    """``auto.from_pretrained`` of a GGUF file, where ``auto`` is one of transformers' classes, without its quantiser.

    ``dtype="auto"`` is float32: the file's own numbers, of 4 bits for example, cannot be trained.
    """
    path = Path(file)
    require_gguf(f"model={str(file)!r}")
    if not path.is_file():
        raise ValueError(f"model={str(file)!r}: there is no such file")
    options: dict[str, Any] = {"dtype": torch.float32 if dtype == "auto" else dtype}
    if packing := getattr(transformers, "GgufConfig", None):  # of releases that can leave the weights packed
        options["quantization_config"] = packing(dequantize=True)
    return without_quantiser(auto.from_pretrained(path.parent, gguf_file=path.name, **options))


def without_quantiser(model: Any) -> Any:
    """The same model, without what transformers leaves on one that came from a GGUF file: it refuses to save that.

    ``ValueError`` where the weights are still packed.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None or str(getattr(quantiser.quantization_config.quant_method, "value", "")) != "gguf":
        return model
    if packed := [path for path, layer in model.named_modules() if _is_packed(layer)]:
        raise ValueError(
            f"the weights of the {type(model).__name__} are packed as in its GGUF file ({packed[0]}), and cannot be "
            "trained: pass the path of the file as model, or load it with "
            "quantization_config=GgufConfig(dequantize=True)"
        )
    quantiser.remove_quantization_config(model)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config._is_quantized = False
    return model


def _is_packed(layer: nn.Module) -> bool:
    tensors = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
    return any(tensor.dtype in (torch.uint8, torch.int8) for tensor in tensors)
