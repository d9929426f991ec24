"""The tokens that end a text: chat models have several, a base model's end of text and a turn's."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Set
from typing import TYPE_CHECKING, Any

from sb3_ppo_ext.language.inputs import in_order, whole_number_of
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EndTokens = int | Iterable[int]


def end_tokens(eos_token_id: Any) -> tuple[int, ...]:
    """The ids that ``eos_token_id`` names, a number or several, each once and in order; ``ValueError`` for none."""
    single = whole_number_of(eos_token_id)
    listed = sorted(eos_token_id) if isinstance(eos_token_id, Set) else in_order(eos_token_id)
    ids = [single] if single is not None else [whole_number_of(token) for token in listed or ()]
    numbers = [token for token in ids if token is not None]
    if not numbers or len(numbers) < len(ids):
        raise ValueError(f"eos_token_id={eos_token_id!r}: the id of a token, or a list of such ids, is needed")
    return tuple(dict.fromkeys(numbers))


def written(tokens: tuple[int, ...]) -> str:
    """The tokens as a user writes them for an argument: ``1``, or ``[1, 8]``."""
    return str(tokens[0]) if len(tokens) == 1 else str(list(tokens))


def check_ends(model: PreTrainedModel, eos_token_id: EndTokens, vocab_size: int) -> None:
    """``ValueError`` for an end token that cannot be chosen; a warning where the model names one that ends nothing."""
    ends = end_tokens(eos_token_id)
    if wrong := [token for token in ends if not 0 <= token < vocab_size]:
        raise ValueError(f"eos_token_id={wrong[0]} is not among the {vocab_size} tokens of the vocabulary")
    for name, config in (("generation_config", model.generation_config), ("config", model.config.get_text_config())):
        named = getattr(config, "eos_token_id", None)
        tokens = () if named is None or named == [] else end_tokens(named)
        if others := tuple(token for token in tokens if token not in ends and 0 <= token < vocab_size):
            warnings.warn(
                f"the model's {name} has eos_token_id={written(tokens)}, but the environment's responses end with "
                f"eos_token_id={written(ends)} alone: after {written(others)} a response would go on. Pass "
                f"eos_token_id={written((*ends, *others))} to PromptVecEnv (to ResponseSpace in an environment of your "
                f"own); or, where only {written(ends)} is meant, set it in the model's generation_config and config",
                TrainingWarning,
                stacklevel=4,
            )
            return
