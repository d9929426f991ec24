"""A table of responses: the best, the worst and some in between, with their scores and their KL to the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy
from sb3_ppo_ext.language.training.token_rollout import ResponseSummary
from sb3_ppo_ext.update.training import Trained

HEADER = ("", "score", "KL", "prompt", "response")
PROMPT = HEADER.index("prompt")
CUT = "..."
LONG = 40  # characters in common: fewer words than that are not worth leaving out


class SampleTable(BaseCallback):
    """Every ``every`` rollouts, a table of samples: in TensorBoard's texts, and on the terminal with ``verbose=1``.

    It shows the rollout that was last trained on, for which the KL (nats per response, k1) is known. Lines that all
    prompts begin and end with, such as a chat template's, are left out. A score that rises
    while the samples turn to gibberish is a reward function being exploited; no curve shows that.
    """

    rank_zero_only = True  # of several processes

    def __init__(self, every: int = 10, *, random_rows: int = 2, width: int = 60, verbose: int = 0) -> None:
        if every < 1 or random_rows < 0:
            raise ValueError(f"every={every}, random_rows={random_rows}: at least 1 and 0 are needed")
        super().__init__(verbose)
        self.every, self.random_rows, self.width = every, random_rows, width
        self.rollouts = 0
        self.texts: list[list[tuple[Any, Any]]] = []
        self.generator = np.random.default_rng(0)  # its own: a callback must not change the run

    def _on_rollout_start(self) -> None:
        self._show()
        self.texts = []

    def _on_step(self) -> bool:
        self.texts.append([(info.get("prompt"), info.get("response")) for info in self.locals["infos"]])
        return True

    def _on_training_end(self) -> None:
        self._show()

    def _show(self) -> None:
        if not self.texts:
            return
        self.rollouts += 1
        if (self.rollouts - 1) % self.every:
            return
        rows = self.rows()
        if self.verbose:
            print(as_text(rows, self.width))
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                output.writer.add_text("lm/samples", as_markdown(rows), self.num_timesteps)

    def _summary(self) -> ResponseSummary | None:
        if not isinstance(self.model.policy, LanguageModelPolicy):
            raise ValueError(f"SampleTable is for a LanguageModelPolicy; this is a {type(self.model.policy).__name__}")
        update: Trained | None = self.model.last_update  # type: ignore[attr-defined]  # of PPOX, which alone trains it
        return cast(ResponseSummary, update.summary) if update is not None else None

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows, as text."""
        if (summary := self._summary()) is None:
            return []  # the first rollout is not trained on yet
        drawn = [pair for step in self.texts for pair in step]
        here = summary.place >= 0  # others were drawn for the rollout before
        score, kl = summary.score[here], None if summary.kl is None else summary.kl[here]
        prompts, responses = zip(*(drawn[place] for place in summary.place[here]), strict=True)
        texts = list(zip(what_differs(prompts), responses, strict=True))
        middle = self.generator.choice(len(score), min(self.random_rows, len(score)), replace=False).tolist()
        chosen = {"best": int(score.argmax()), "worst": int(score.argmin())}
        chosen |= {f"random {number}": row for number, row in enumerate(middle, start=1)}
        return [
            (name, f"{score[row]:.3g}", "" if kl is None else f"{kl[row]:.3g}", *map(str, texts[row]))
            for name, row in chosen.items()
        ]


def what_differs(prompts: Sequence[Any]) -> list[Any]:
    """Texts without the lines that all of them begin and end with, or the words where those make one long line.

    Dots stand for what is left out. Prompts that are no texts, or all the same, stay as they are.
    """
    if not all(isinstance(prompt, str) for prompt in prompts) or len(set(prompts)) < 2:
        return list(prompts)
    head = _shared_lines(prompts)
    rest = [prompt[head:] for prompt in prompts]
    tail = _shared_lines([prompt[::-1] for prompt in rest])
    return [
        (CUT if head else "") + prompt[: len(prompt) - tail].strip() + (CUT if tail else "") if head or tail else prompt
        for prompt in rest
    ]


def _shared_lines(texts: Sequence[str]) -> int:
    """The number of characters that all texts begin with, in whole lines; or in whole words, within one long line."""
    first, last = min(texts), max(texts)  # all others begin with what these two do
    differing = (index for index, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1])
    common = first[: next(differing, min(len(first), len(last)))]
    return common.rfind("\n") + 1 or (common.rfind(" ") + 1 if len(common) > LONG else 0)


def as_text(rows: list[tuple[str, ...]], width: int) -> str:
    """A table for the terminal, its long texts cut to ``width`` characters: of prompts the end stays."""
    cells = [
        [_one_line(cell, width, end=column == PROMPT) for column, cell in enumerate(row)] for row in (HEADER, *rows)
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(" | ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)) for row in cells)


def as_markdown(rows: list[tuple[str, ...]], header: tuple[str, ...] = HEADER) -> str:
    """A table as TensorBoard's text tab shows it."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) for row in (header, *rows)]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join(["---"] * len(header)), *lines[1:]))


def _one_line(text: str, width: int, *, end: bool) -> str:
    # Line breaks, and what else a terminal would take as an order to it.
    text = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    if len(text) <= width:
        return text
    return CUT + text[len(text) - width + len(CUT) :] if end else text[: width - len(CUT)] + CUT
