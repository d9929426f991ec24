"""What the KL coefficient buys: the same model tuned on a lexicon's score under several ``ref_kl_coef``, as a picture.

A small language model reads made-up reviews of meals; the reward counts words of a lexicon, the good ones less the bad
ones. Each coefficient gives a point of score against KL to the model before; the curve beside them is best-of-n: the
best of n responses of that model, at a KL of no more than log n - (n - 1)/n (Beirami et al. 2024). With a low
coefficient the reward is over-optimised: the score still rises, but what is written is no longer a review. That shows
in the perplexity under the model before, and in distinct-2, the fraction of a response's word pairs that are no
repetitions.

    python examples/reward_vs_kl.py --seeds 3      # writes reward_vs_kl.png

Needs both extras: pip install "sb3_ppo_ext[lm,zoo]".
"""

import argparse
import functools
import itertools
import math
import random
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from text_tasks.pretraining import Pretrained

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv
from sb3_ppo_ext.language.monitoring.records import distinct_pairs

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.figure import Figure

GOOD = ("lovely", "fresh", "kind", "perfect", "great", "tasty")
BAD = ("cold", "stale", "rude", "slow", "bland", "burnt")
PLAIN = ("small", "busy", "plain", "round", "new", "salted")
NOUNS = ("soup", "bread", "fish", "waiter", "room", "tea", "salad", "music", "cook", "table")
COEFFICIENTS = (2.0, 1.0, 0.6, 0.3, 0.1, 0.03, 0.0)
DRAWN = (1, 2, 4, 8, 16, 32, 64)  # n of best-of-n; also how many responses to each prompt measure a model

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seeds", type=int, default=1)
parser.add_argument("--timesteps", type=int, default=8192, help="responses, for each coefficient and seed")
parser.add_argument("--pretraining-steps", type=int, default=300)
parser.add_argument("--coefficients", type=float, nargs="+", default=COEFFICIENTS)
parser.add_argument("--output", default="reward_vs_kl.png")
options = parser.parse_args()


class Point(NamedTuple):
    """What a model writes: score, nats per response to the model before, perplexity under it, diversity, an example."""

    score: float
    kl: float
    perplexity: float
    distinct_2: float
    text: str


@functools.cache
def reviews() -> tuple[str, ...]:
    """Sentences of one to three clauses, of which as many are good as bad."""
    chance = random.Random(4)

    def clause() -> str:
        noun, word = chance.choice(NOUNS), chance.choice(GOOD + BAD + PLAIN)
        very = chance.choice(("", "", "very ", "rather "))
        return f"the {noun} {chance.choice(('was', 'seemed'))} {very}{word}"

    def review() -> str:
        joined = (f" {chance.choice(('and', 'but', 'while'))} {clause()}" for _ in range(chance.randint(0, 2)))
        return f"{clause()}{''.join(joined)} ."

    return tuple(review() for _ in range(10_000))


def lexicon_score(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Good words less bad words."""
    return [float(sum((word in GOOD) - (word in BAD) for word in response.split())) for response in responses]


recipe = Pretrained("reviews", reviews, vocabulary=400, positions=32, steps=options.pretraining_steps)
prompts = [f"the {noun} {verb}" for noun, verb in itertools.product(NOUNS, ("was", "seemed"))]


def model_for(coefficient: float, seed: int) -> PPOX:
    return PPOX(
        LanguageModelPolicy,
        PromptVecEnv(prompts, lexicon_score, recipe.tokenizer(), n_envs=64, max_new_tokens=20),
        policy_kwargs={"model": recipe, "value": "separate"},  # errors of the value must not spoil the language
        ref_kl_coef=coefficient,
        n_steps=4,
        batch_size=64,
        n_epochs=4,
        gamma=1.0,
        vf_coef=0.1,
        learning_rate="linear:5e-4:5e-5",
        seed=seed,
        device="cpu",
    )


def measured(model: PPOX) -> tuple[Point, np.ndarray]:
    """What the model writes, and the scores [prompts, 64] of several responses to every prompt."""
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    every = [prompt for prompt in prompts for _ in range(DRAWN[-1])]
    env = PromptVecEnv(every, lexicon_score, recipe.tokenizer(), n_envs=len(every), max_new_tokens=20, shuffle=False)
    observation = {name: torch.from_numpy(array) for name, array in env.reset().items()}
    response = policy.generate(observation)
    _, scores, _, infos = env.step(response.token.numpy())
    reference = policy.reference_log_prob(policy.tokens(observation, response.token, response.mask))
    point = Point(
        float(scores.mean()),
        float((response.log_prob - reference).sum(-1).mean()),
        math.exp(-float(reference.sum()) / int(response.mask.sum())),
        within_response(response.token.numpy(), response.mask.numpy()),
        infos[0]["prompt"] + infos[0]["response"],
    )
    return point, scores.reshape(len(prompts), -1)


def within_response(token: np.ndarray, mask: np.ndarray) -> float:
    """Distinct-2 of each response [B, L] by itself, on average."""
    return float(np.mean([distinct_pairs(*row) for row in zip(token[:, None], mask[:, None], strict=True)]))


def best_of(n: int, scores: np.ndarray) -> tuple[float, float]:
    """The bound on the KL, and the mean of the best of n of the scores [prompts, 64]."""
    best = scores.reshape(len(scores), -1, n).max(axis=-1)
    return math.log(n) - (n - 1) / n, float(best.mean())


def mean(points: Sequence[Point]) -> Point:
    score, kl, perplexity, distinct_2 = np.mean([point[:4] for point in points], axis=0).tolist()
    return Point(score, kl, perplexity, distinct_2, points[0].text)


def draw(before: Point, tuned: dict[float, list[Point]], curve: list[tuple[float, float]]) -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 6), sharex=True)
    means = {coefficient: mean(points) for coefficient, points in tuned.items()}
    path = [before, *sorted(means.values(), key=lambda point: point.kl)]
    kl = [max(point.kl, 0.0) for point in path]
    left.plot(*zip(*curve, strict=True), "s--", color="gray", markersize=4, label=f"best of n, n = 1 ... {DRAWN[-1]}")
    left.plot(kl, [point.score for point in path], "o-", color="tab:blue", label="PPOX, mean of the seeds")
    for points in tuned.values():
        left.plot([one.kl for one in points], [one.score for one in points], ".", color="tab:blue", alpha=0.4)
    for coefficient, point in means.items():
        left.annotate(f"{coefficient:g}", (point.kl, point.score), (6, -12), textcoords="offset points", fontsize=9)
    left.set(ylabel="score: good words less bad words", title="What is rewarded, for each ref_kl_coef")
    left.legend(loc="upper left")
    right.plot(kl, [point.perplexity for point in path], "o-", color="tab:red")
    right.set_ylabel("perplexity under the model before", color="tab:red")
    right.set(title="What is not", yscale="log")
    twin = right.twinx()
    twin.plot(kl, [point.distinct_2 for point in path], "o-", color="tab:green")
    twin.set_ylabel("distinct-2 within a response", color="tab:green")
    for axes in (left, right):
        axes.set(xlabel="KL to the model before, nats per response", xscale="symlog")
        axes.set_xlim(0, 2 * max(kl[-1], 1.0))
        axes.grid(alpha=0.3)
        spoiled = [point.kl for point in path if point.perplexity > 2 * before.perplexity]
        if spoiled:
            axes.axvspan(min(spoiled) * 0.8, 2 * kl[-1], color="tab:red", alpha=0.08)
            axes.text(
                min(spoiled) * 0.85, 0.03, "over-optimised", transform=axes.get_xaxis_transform(), color="tab:red"
            )
    write_examples(figure, [("before", before), *((f"{coefficient:g}", point) for coefficient, point in means.items())])
    figure.savefig(options.output, dpi=110)


def write_examples(figure: Figure, points: Sequence[tuple[str, Point]]) -> None:
    lines = ["ref_kl_coef  a response", *(f"{name:>11}  {textwrap.shorten(point.text, 105)}" for name, point in points)]
    # A model that is far gone writes bytes that are no letters.
    printable = "\n".join(
        "".join(one if one.isascii() and one.isprintable() else "?" for one in line) for line in lines
    )
    figure.text(0.02, 0.02, printable, family="monospace", fontsize=8)
    figure.tight_layout(rect=(0, 0.03 + 0.024 * len(lines), 1, 1))


def row(name: str, point: Point) -> str:
    numbers = f"{point.score:5.2f} | {point.kl:6.2f} | {point.perplexity:10.2f} | {point.distinct_2:10.3f}"
    return f"{name:>11} | {numbers} | {point.text}"


print("ref_kl_coef | score |     KL | perplexity | distinct-2 | a response")
before, scores = measured(model_for(0.0, seed=0))
print(row("(before)", before), flush=True)
tuned: dict[float, list[Point]] = {}
for coefficient in options.coefficients:
    runs = (model_for(coefficient, seed).learn(options.timesteps, log_interval=None) for seed in range(options.seeds))
    tuned[coefficient] = [measured(model)[0] for model in runs]
    print(row(f"{coefficient:g}", mean(tuned[coefficient])), flush=True)
draw(before, tuned, [best_of(n, scores) for n in DRAWN])
print(f"picture: {options.output}")
