"""Models by folder, GGUF file or hub name; where that is an adapter's, its base with the adapter merged into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.utils import load_peft_weights
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from sb3_ppo_ext.language.model.adapters import REMEDY, merged, warnings_of_peft, without_adapters
from sb3_ppo_ext.language.model.gguf_reading import is_gguf, read_gguf

PREFIX = "base_model.model."  # of the names in an adapter's file
# Those of transformers, PEFT, the hub's client and torch, which have no type in common.
LOADING_ERRORS = (OSError, ImportError, ValueError, RuntimeError, KeyError, AttributeError, TypeError, UserWarning)
WHOLE_MODEL = ("model*.safetensors", "pytorch_model*.bin")  # not adapter_model.safetensors
HEADS = ("score.weight", "classifier.weight", "out_proj.weight")  # of classifiers, [labels, D]


def pretrained(auto: Any, source: str, dtype: str | torch.dtype = "auto") -> Any:
    """``auto.from_pretrained``, where ``auto`` is one of transformers' classes; an adapter is merged into its base.

    By PEFT's loader: that of transformers 5.24 leaves out half of a DoRA adapter. ``ValueError`` where base and adapter
    are not there, or do not belong together.
    """
    if is_gguf(source):
        return read_gguf(auto, source, dtype)
    if find_adapter_config_file(source) is None:
        return auto.from_pretrained(source, dtype=dtype)
    name, base_name = f"model={source!r}", None
    try:
        config = PeftConfig.from_pretrained(source)
        weights = load_peft_weights(source, device="cpu")
        # A folder that has a whole model as well is the base itself.
        whole = any(file for pattern in WHOLE_MODEL for file in Path(source).glob(pattern))
        base_name = source if whole else config.base_model_name_or_path
        base = _base(auto, base_name, weights, with_adapter=whole, dtype=dtype, revision=config.revision)
        _resize(base, weights)
        with warnings_of_peft():
            adapter = PeftModel.from_pretrained(base, source, torch_device="cpu")
    except LOADING_ERRORS as error:
        raise ValueError(
            f"{name} is an adapter, which cannot be put on its base {base_name!r}: {error}. {REMEDY}"
        ) from error
    return merged(adapter, name)


def _base(auto: Any, name: str | None, weights: dict[str, Tensor], *, with_adapter: bool, **options: Any) -> Any:
    """The model below the adapter."""
    if not name:
        raise ValueError("its base_model_name_or_path is empty")
    if not with_adapter and find_adapter_config_file(name) is not None:  # trained on another adapter
        return pretrained(auto, name, options["dtype"])
    if auto is AutoModelForSequenceClassification:
        options.update(_labels(weights), ignore_mismatched_sizes=True)
    model, report = auto.from_pretrained(name, output_loading_info=True, **options)
    plain = without_adapters(model) if with_adapter else model
    drawn = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}  # newly, at random
    if random := sorted(key for key in drawn & set(plain.state_dict()) if PREFIX + key not in weights):
        raise ValueError(f"neither of the two has a {random[0]} that fits")
    return plain


def _labels(weights: dict[str, Tensor]) -> dict[str, int]:
    """The number of labels of the adapter's head, which is not in its base's settings."""
    heads = [tensor for key, tensor in weights.items() if key.endswith(HEADS)]
    return {"num_labels": len(heads[0])} if heads else {}


def _resize(base: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Gives the base as many tokens as the adapter's embedding, where it has one: tokens were added with it."""
    words = base.get_input_embeddings()
    paths = [path for path, module in base.named_modules() if module is words]
    for path in paths:
        saved = weights.get(f"{PREFIX}{path}.weight")
        if saved is not None and len(saved) != len(cast(nn.Embedding, words).weight):
            base.resize_token_embeddings(len(saved), mean_resizing=False)
