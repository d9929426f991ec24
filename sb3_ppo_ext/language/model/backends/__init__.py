"""Generators by name: programs of other libraries that draw the responses of a rollout, as ``sampler`` names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sb3_ppo_ext.language.model.backends.continuous_batching import ContinuousBatchingGenerator
from sb3_ppo_ext.language.model.backends.structure import plain_structure
from sb3_ppo_ext.language.model.backends.vllm import VLLMGenerator
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.generators import Generator
from sb3_ppo_ext.unknown_arguments import require_choice

BACKENDS: dict[str, Callable[..., Generator]] = {
    "continuous_batching": ContinuousBatchingGenerator,
    "vllm": VLLMGenerator,
}


def backend_of(choice: Any, model: CausalLM) -> Generator | None:
    """The generator that ``sampler`` names, as "vllm" or {"vllm": options}; None where it names none."""
    name: Any = choice
    options: Any = None
    if isinstance(choice, Mapping):
        if len(choice) != 1:
            raise ValueError(f'sampler={choice!r}: one name with its options is needed, as {{"vllm": {{...}}}}')
        ((name, options),) = choice.items()
        require_choice("sampler", name, BACKENDS)
        if not isinstance(options, Mapping | None):
            raise ValueError(f"sampler={choice!r}: the options of {name!r} are names with values, as in a dict")
    if not isinstance(name, str) or name not in BACKENDS:
        return None
    return BACKENDS[name](plain_structure(model), **(options or {}))
