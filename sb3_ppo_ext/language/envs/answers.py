"""The answer in a response: how it is found, and graded by the rule of the question's own data set."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sb3_ppo_ext.language.envs.failures import Failures
from sb3_ppo_ext.language.inputs import one_of

REWARDS = ("success", "score")
HINTS = {
    "tag": "Give the final answer between <answer> and </answer>.",
    "number": "Answer with the number only.",
    "text": "Answer with nothing but the answer.",
}
TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
UNFINISHED = re.compile(r"-?\d[\d,.]*$")  # a number at the end of a response that was cut off may lack digits

Row = dict[str, Any]
Answer = Callable[[str], str | None]


@dataclass
class Grader:
    """Scores responses by the data sets' own rules, 0 to 1; as ``reward`` either that, or 1 for a full score, else 0.

    Partial scores reward enumerating and copying: many tasks give some for any text. A rule that fails on a response
    gives 0, is counted in ``failures``, and is warned of once for each task.
    """

    datasets: dict[str, Any]
    answer_of: Answer
    reward: str
    failures: Failures = field(default_factory=Failures, init=False)

    @property
    def n_errors(self) -> int:
        """The answers on which a rule has failed."""
        return self.failures.total

    def __call__(
        self, prompts: list[str], responses: list[str], task: list[str], entry: list[Row], cut_off: list[bool]
    ) -> list[float]:
        """One number per response; a number that the cut of a response may have shortened is not its answer."""
        if self.answer_of is last_number:
            responses = [
                UNFINISHED.sub("", text) if cut else text for text, cut in zip(responses, cut_off, strict=True)
            ]
        return [self._reward(*graded) for graded in zip(responses, task, entry, strict=True)]

    def _reward(self, response: str, task: str, entry: Row) -> float:
        answer = self.answer_of(response)
        score = 0.0 if answer is None else self._score(answer, task, entry)
        return score if self.reward == "score" else float(score >= 1.0)

    def _score(self, answer: str, task: str, entry: Row) -> float:
        try:
            return float(self.datasets[task].score_answer(answer, entry))
        except Exception as error:  # whatever a task's parser makes of junk
            self.failures.add(
                f"the grader of {task!r}", error, "the response scores 0", case=f" on the answer {answer[:60]!r}"
            )
            return 0.0


def extractor(answer: str | Answer) -> Answer:
    """The function that finds the answer in a response."""
    if callable(answer):
        return answer
    one_of(tuple(HINTS), "answer", answer)
    return {"tag": last_tag, "number": last_number, "text": stripped}[answer]


def last_tag(response: str) -> str | None:
    """The text between the last <answer> and </answer>; None where there is none."""
    found = TAG.findall(response)
    return found[-1].strip() if found else None


def last_number(response: str) -> str | None:
    """The last number, without commas: in "7 + 8 = 15" the first is not the answer."""
    found = NUMBER.findall(response)
    return found[-1].replace(",", "") if found else None


def stripped(response: str) -> str | None:
    """The text without space around it; None where nothing is left."""
    return response.strip() or None
