"""What is assumed of vLLM's interface, from version 0.11 on; it is no dependency, and imported for its sampler alone.

``tests/language/model/backends/test_vllm_host.py`` compares the names below with the stand-in of the tests, and with
vLLM itself where that is installed.
"""

from __future__ import annotations

from typing import Any

from sb3_ppo_ext.language.model.generators import Request, SamplerError
from sb3_ppo_ext.optional_packages import optional_package

# The folder is read anew by each "reload_weights" of the workers, into the engine that began with it.
LLM_METHODS = ("generate", "collective_rpc", "reset_prefix_cache", "sleep", "wake_up")
GENERATE = ("prompts", "sampling_params", "use_tqdm")
RELOAD = "reload_weights"
# Of vllm.LLM, and not to be chosen: the folder; ids without a tokenizer; log-probabilities as sampled from.
DECIDED = ("model", "skip_tokenizer_init", "logprobs_mode")
PARAMETERS = (  # of SamplingParams, whose defaults cut nothing off: no top-k, top-p, min-p or penalty
    *("temperature", "max_tokens", "stop_token_ids", "ignore_eos", "logprobs", "seed", "detokenize"),
    "allowed_token_ids",
)


def vllm_module() -> Any:
    """The package, which is not part of any extra; ``ImportError`` where it is missing or cannot be imported."""
    remedy = 'vllm\nin a version for this PyTorch; sampler="continuous_batching" needs no other package'
    return optional_package("vllm", 'sampler="vllm"', remedy)


def engine_of(folder: str, options: dict[str, Any]) -> Any:
    """An engine in this process over the model in ``folder``."""
    module = vllm_module()
    try:
        return module.LLM(model=folder, skip_tokenizer_init=True, logprobs_mode="processed_logprobs", **options)
    except TypeError as error:
        version = getattr(module, "__version__", "of an unknown version")
        raise ValueError(
            f'sampler={{"vllm": {options!r}}}: vllm {version} does not take these options, or is older than 0.11: '
            f"{error}"
        ) from error


def reload(engine: Any) -> None:
    """Lets the engine read its folder again, and forget what it has computed of prompts with other weights."""
    engine.collective_rpc(RELOAD)
    if engine.reset_prefix_cache() is False:
        raise SamplerError(
            "vLLM has not emptied its prefix cache after an update of the weights: what it has kept of prompts would "
            "be that of other weights. It may not have other requests; enable_prefix_caching=False does without a cache"
        )


def drawn(
    engine: Any, prompts: list[list[int]], request: Request, seeds: list[int], vocab_size: int
) -> list[tuple[list[int], list[float]]]:
    """The tokens of a response to each prompt, the end token included, and their log-probabilities."""
    module = vllm_module()
    allowed = None if request.vocab_size >= vocab_size else list(range(request.vocab_size))
    parameters = [
        module.SamplingParams(
            temperature=request.temperature, max_tokens=request.max_new_tokens, stop_token_ids=list(request.end_tokens),
            ignore_eos=True, logprobs=0, seed=seed, detokenize=False, allowed_token_ids=allowed,
        )
        for seed in seeds
    ]  # fmt: skip
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = [answer.outputs[0] for answer in engine.generate(inputs, sampling_params=parameters, use_tqdm=False)]
    return [(list(output.token_ids), log_probs_of(output)) for output in outputs]


def log_probs_of(output: Any) -> list[float]:
    """The log-probability of each token of a response; vLLM has one entry for a token with ``logprobs=0``."""
    return [entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)]
