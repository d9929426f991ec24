"""What one compiled block for all blocks of a real model saves: SmolLM2-135M, eager and compiled in turn.

    python -m tests.benchmarks.compiled_blocks [--rows 16] [--rounds 3] [--threads 2] [--whole]

The model, its prompts of 39 tokens and responses of 32 are those of ``language_models --real``: with an adapter of
rank 16, or with ``--whole`` without one. Compiling is timed into an empty folder. Figures are medians over the rounds
after a first one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch

from sb3_ppo_ext.host.glibc import take_large_blocks_from_heap
from tests.benchmarks import real_language_model as real


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_turn(rounds: int, eager: Callable[[], float], compiled: Callable[[], float]) -> str:
    """Medians of both, and how often they are in each other."""
    pairs = [(eager(), compiled()) for _ in range(rounds + 1)][1:]
    first, second = (statistics.median(each) for each in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    return f"eager {first:.2f} s, blocks {second:.2f} s: {first / second:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def training(built: Any, graphs: Any, rounds: int, rows: int) -> None:
    """Prints the seconds of compiling the gradient, and those of a gradient of ``rows`` responses."""
    from sb3_ppo_ext.language.engines.blocks import CompiledBlocks

    ids, mask = real.prompts(rows, groups=False)
    response = torch.randint(3, 40_000, (rows, real.RESPONSE), generator=torch.Generator().manual_seed(2))
    observation = {"input_ids": ids, "attention_mask": mask}
    tokens = built.tokens(observation, response, torch.ones_like(response, dtype=torch.bool))

    def gradient(blocks: Callable[[], AbstractContextManager[None]]) -> float:
        built.zero_grad()
        with blocks():
            started = time.perf_counter()
            log_prob, _, value = built.evaluate_tokens(tokens, entropy_grad=False)
            (log_prob.mean() + value.mean()).backward()
            return time.perf_counter() - started

    for dtype in (None, torch.bfloat16):
        built.lm.compute_dtype = dtype
        made: list[CompiledBlocks] = []
        compiling = seconds_of(lambda: made.append(CompiledBlocks(built, graphs)))  # noqa: B023  # called at once
        found = in_turn(rounds, partial(gradient, nullcontext), partial(gradient, made[0].installed))
        name = "float32" if dtype is None else "bfloat16"
        print(f"gradient of {rows} rows in {name}: {found}; compiled in {compiling:.0f} s", flush=True)
    built.lm.compute_dtype = None


def drawing(built: Any, graphs: Any, rounds: int, rows: int) -> None:
    """Prints the seconds of compiling one token, and those of a rollout."""
    from sb3_ppo_ext.language.engines.block_decoder import BlockDecoder, TokenBlocks

    ids, mask = real.prompts(rows, groups=False)
    made: list[TokenBlocks] = []
    compiling = seconds_of(lambda: made.append(TokenBlocks(built, graphs)))

    def draw(**options: Any) -> float:
        torch.manual_seed(0)
        return seconds_of(lambda: built.generate({"input_ids": ids, "attention_mask": mask}, **options))

    found = in_turn(rounds, draw, partial(draw, decoder_of=partial(BlockDecoder, blocks=made[0])))
    print(f"{rows} responses drawn: {found}; compiled in {compiling:.0f} s", flush=True)


def main() -> None:
    """Measures training, and then drawing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--whole", action="store_true", help="train all parameters")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    built = real.policy(lora=not options.whole)
    take_large_blocks_from_heap(True)  # as in every update of a large network
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SB3_PPO_EXT_CACHE_DIR"] = folder
        from sb3_ppo_ext.engines.graph_cache import Graphs

        graphs = Graphs()
        training(built, graphs, options.rounds, options.rows)
        drawing(built, graphs, options.rounds, options.rows)


if __name__ == "__main__":
    main()
