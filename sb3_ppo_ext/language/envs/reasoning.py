"""Prompts with verifiable answers, drawn by the package reasoning-gym: for training, and held out from it."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from sb3_ppo_ext.language.envs.answers import HINTS, REWARDS, Answer, Grader, extractor
from sb3_ppo_ext.language.inputs import at_least, number_of, one_of
from sb3_ppo_ext.optional_packages import optional_package
from sb3_ppo_ext.unknown_arguments import require_choice

# Item i of a data set with the seed s is that of s + i: seeds closer than the sizes give the same questions again.
SEEDS_APART = 2_000_000
LARGEST = SEEDS_APART // 2
DRAWS_PER_ITEM = 8  # before a space of questions counts as exhausted
SMALL_SPACE = 0.1  # of the draws had been drawn before

Row = dict[str, Any]


@dataclass
class ReasoningPrompts:
    """Rows with the columns "prompt", "task" and "entry", and how responses to them are scored.

    As ``PromptVecEnv(prompts.train, tokenizer=tokenizer, **prompts.scoring, ...)`` and
    ``PromptEvalCallback(prompts.held_out, by="task", answer_of=prompts.answer_of)``.
    """

    train: list[Row]
    held_out: list[Row]
    answer_of: Answer  # what of a response is graded, None where there is none
    scoring: dict[str, Any]  # ``reward_fn`` and ``success``


def reasoning_prompts(
    tasks: str | Iterable[str] | Mapping[str, Mapping[str, Any]],
    size: int,
    *,
    held_out: int = 0,
    seed: int = 0,
    answer: str | Answer = "tag",
    hint: str | None = None,
    reward: str = "success",
    chat: bool = False,
    system: str | None = None,
) -> ReasoningPrompts:
    """Questions of reasoning-gym (extra ``reasoning``), no two the same, with their grader.

    The held-out questions are drawn first, from seeds far away from those of training, so that they do not depend on
    ``size``, and training has none of them. A task with few questions is warned of.

    :param tasks: a name, several, or name -> configuration of the task, in which "weight" is its share (1)
    :param size: questions of training, over all tasks
    :param held_out: questions for evaluation, over all tasks
    :param seed: another one gives entirely other questions
    :param answer: what of a response is graded: what stands between the last <answer> and </answer> ("tag"), the last
        "number", the whole "text", or a function of the response that returns it, or None
    :param hint: what a question is followed by; None: what goes with ``answer``
    :param reward: 1 for a full score and 0 else ("success"), or the "score" itself, partial credit included
    :param chat: prompts as chat messages, for the tokenizer's template, instead of text
    :param system: the system message of these chats
    """
    gym = optional_package("reasoning_gym", "reasoning_prompts", '"sb3_ppo_ext[reasoning]"')
    size, held_out, seed = at_least(1, "size", size), at_least(0, "held_out", held_out), at_least(0, "seed", seed)
    one_of(REWARDS, "reward", reward)
    answer_of = extractor(answer)
    written = (HINTS[answer] if isinstance(answer, str) else "") if hint is None else hint
    if max(size, held_out) > LARGEST:
        raise ValueError(f"size={size}, held_out={held_out}: at most {LARGEST}, as far as seeds are apart")
    train, test, datasets = drawn(gym, configurations(tasks), size, held_out, seed)
    for row in (*train, *test):
        row["prompt"] = prompt_of(row["entry"]["question"], written, chat=chat, system=system)
    grader = Grader(datasets, answer_of, reward)
    return ReasoningPrompts(train, test, answer_of, {"reward_fn": grader, "success": 1.0})


def drawn(
    gym: ModuleType, configured: Mapping[str, tuple[float, Row]], size: int, held_out: int, seed: int
) -> tuple[list[Row], list[Row], dict[str, Any]]:
    """The rows of training, those held out, and the data set of every task."""
    weights = np.array([weight for weight, _ in configured.values()])
    train: list[Row] = []
    test: list[Row] = []
    datasets = {}
    shares = zip(shared(size, weights), shared(held_out, weights), strict=True)
    for (name, (_, config)), (for_train, for_test) in zip(configured.items(), shares, strict=True):
        draws = Draws(gym, name, config)
        test += draws.take(for_test, seed * SEEDS_APART + LARGEST)
        train += draws.take(for_train, seed * SEEDS_APART)
        draws.warn_of_small_space(for_train + for_test)
        datasets[name] = draws.dataset
    return train, test, datasets


class Draws:
    """The distinct questions drawn of one task."""

    def __init__(self, gym: ModuleType, name: str, config: Mapping[str, Any]) -> None:
        self.gym, self.name, self.config = gym, name, config
        self.dataset = self._dataset(0, 1)
        self.seen: set[str] = set()
        self.n_draws = self.n_errors = 0

    def _dataset(self, seed: int, size: int) -> Any:
        try:
            return self.gym.create_dataset(self.name, seed=seed, size=size, **self.config)
        except Exception as error:  # assertions and others of a task's configuration
            raise ValueError(f"the task {self.name!r} with {dict(self.config)} failed: {error!r}") from error

    def take(self, count: int, seed: int) -> list[Row]:
        """``count`` new rows, or as many as there are in ``DRAWS_PER_ITEM`` times as many draws."""
        rows: list[Row] = []
        if not count:
            return rows
        for entry in self._entries(seed, min(count * DRAWS_PER_ITEM, LARGEST)):
            if entry["question"] not in self.seen:
                self.seen.add(entry["question"])
                rows.append({"prompt": "", "task": self.name, "entry": entry})
                if len(rows) == count:
                    break
        return rows

    def _entries(self, seed: int, count: int) -> Iterator[Row]:
        dataset = self._dataset(seed, count)
        for index in range(count):
            self.n_draws += 1
            try:
                entry: Row = dataset[index]
            except RuntimeError:  # a task that could not make this question within its limits
                self.n_errors += 1
                continue
            yield entry

    def warn_of_small_space(self, asked_for: int) -> None:
        """Warns where many questions were drawn twice: what is held out is then close to what is trained."""
        drawn = self.n_draws - self.n_errors
        if self.n_errors == self.n_draws > 0:
            raise ValueError(
                f"the task {self.name!r} with {dict(self.config)} made no question in {self.n_draws} draws"
            )
        repeated = drawn - len(self.seen)
        if drawn and (repeated > SMALL_SPACE * drawn or len(self.seen) < asked_for):
            warnings.warn(
                f"{self.name}: {repeated} of {drawn} questions had been drawn before, {len(self.seen)} of {asked_for} "
                "are different: the task has few of them in this configuration, and success on the held-out ones may "
                "be memory of similar ones. Widen its ranges, or ask for fewer",
                stacklevel=4,
            )


def configurations(tasks: Any) -> dict[str, tuple[float, dict[str, Any]]]:
    """Name -> share and configuration of every task; ``ValueError`` for an unknown name or share."""
    listed = [tasks] if isinstance(tasks, str) else tasks
    named: Mapping[str, Mapping[str, Any]] = listed if isinstance(listed, Mapping) else {name: {} for name in listed}
    known = list(importlib.import_module("reasoning_gym.factory").DATASETS)
    found = {}
    for name, config in named.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 3)
            require_choice("task", name, near or sorted(known))
        weight = number_of(config.get("weight", 1.0))
        if weight is None or not 0 < weight < float("inf"):
            raise ValueError(f"the weight of {name!r} is {config['weight']!r}; a number above 0 is needed")
        if taken := {"seed", "size"} & set(config):
            raise ValueError(f"{sorted(taken)[0]!r} in the configuration of {name!r}: it is an argument of its own")
        found[name] = weight, {key: value for key, value in config.items() if key != "weight"}
    if not found:
        raise ValueError(f"tasks={tasks!r}: at least one is needed")
    return found


def shared(count: int, weights: np.ndarray) -> list[int]:
    """``count`` as whole numbers proportional to the ``weights``; the largest remainders are rounded up."""
    exact = count * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: count - counts.sum()]] += 1
    whole: list[int] = counts.tolist()
    return whole


def prompt_of(question: str, hint: str, *, chat: bool, system: str | None) -> str | list[dict[str, str]]:
    """The question and the hint, as a text that ends with a line break, or as chat messages."""
    text = f"{question}\n{hint}" if hint else question
    if not chat:
        return f"{text}\n"
    before = [] if system is None else [{"role": "system", "content": system}]
    return [*before, {"role": "user", "content": text}]
