"""The tasks: a model, prompts for training and held-out ones, and the rule of success.

"gcd" and "sums" are questions of reasoning-gym for SmolLM2-135M, written as two solved examples and one to solve; the
response ends with the line. "copying" is PromptCopy-v0 of examples/text_tasks, whose model is small and pretrained in
place. ``constant`` is the success of the best answer that does not depend on the question.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from text_tasks import copying
from transformers import AutoTokenizer, PreTrainedModel

from sb3_ppo_ext.language import reasoning_prompts
from sb3_ppo_ext.language.model.loading import load_model
from tests.benchmarks.language_jobs import smollm2


@dataclass(frozen=True)
class Task:
    """What a run trains, and where it is judged."""

    model: Callable[[], PreTrainedModel]
    environment: Mapping[str, Any]  # keywords of PromptVecEnv
    answers: Sequence[Sequence[int]]  # the right responses to its prompts, as token ids
    held_out: Mapping[str, Any]  # prompts and columns
    constant: float


@functools.cache
def real_model(ends: tuple[int, ...]) -> PreTrainedModel:
    """SmolLM2-135M-Instruct in float32, read once per process; ``ends`` are its end-of-text tokens."""
    model = load_model(smollm2())
    model.generation_config.eos_token_id = list(ends)
    return model


@functools.cache
def real_tokenizer() -> Any:
    """The tokenizer of the same file."""
    file = smollm2()
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def of_gcd(entry: Mapping[str, Any]) -> str:
    """``gcd 12 8 =``."""
    return "gcd {} {} =".format(*entry["metadata"]["numbers"])


def of_sum(entry: Mapping[str, Any]) -> str:
    """``38 + 5 =``."""
    return f"{entry['metadata']['expression']} ="


WORDINGS = {"gcd": of_gcd, "chain_sum": of_sum}


def right_responses(tokenizer: Any, end: int, answers: Sequence[str]) -> list[list[int]]:
    """A space, the answer and the end of the text, as token ids."""
    return [[*tokenizer(f" {answer}", add_special_tokens=False)["input_ids"], end] for answer in answers]


def solved(name: str, config: Mapping[str, Any], examples: str, size: int, held_out: int, max_new_tokens: int) -> Task:
    """Questions of the reasoning-gym task ``name``, each after the solved ``examples``."""
    questions = reasoning_prompts({name: config}, size, held_out=held_out, answer="number")
    for row in (*questions.train, *questions.held_out):
        row["prompt"] = f"{examples}\n{WORDINGS[name](row['entry'])}"
    tokenizer = real_tokenizer()
    ends = [tokenizer.eos_token_id, *tokenizer("\n", add_special_tokens=False)["input_ids"]]
    environment = {"prompts": questions.train, "tokenizer": tokenizer, "eos_token_id": ends, **questions.scoring}
    answers = Counter(row["entry"]["answer"] for row in questions.held_out)
    constant = answers.most_common(1)[0][1] / len(questions.held_out)
    model = functools.partial(real_model, tuple(ends))
    right = right_responses(tokenizer, ends[-1], [row["entry"]["answer"] for row in questions.train])
    environment["max_new_tokens"] = max_new_tokens
    return Task(model, environment, right, {"prompts": questions.held_out}, constant)


def copies() -> Task:
    """PromptCopy-v0, and the 256 words that it holds out."""
    words = copying.words("held_out")
    held_out = {"prompts": [f"copy {word} >" for word in words], "columns": {"word": words}}
    task = copying.task("training")
    environment = {**task.arguments, "prompts": task.source.texts, "columns": task.source.columns}
    tokenizer = copying.MODEL.tokenizer()
    right = right_responses(tokenizer, tokenizer.eos_token_id, copying.words("training"))
    return Task(copying.MODEL, environment, right, held_out, 1 / len(words))


def task_of(options: Mapping[str, Any]) -> Task:
    """The task that a run's settings name."""
    return copies() if options["name"] == "copying" else solved(**options)
