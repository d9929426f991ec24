"""Responses to look at: the best, the worst and some in between, with their scores and their KL to the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat

from sb3_ppo_ext.language.policy import LanguageModelPolicy

HEADER = ("", "score", "KL", "prompt", "response")


class SampleTable(BaseCallback):
    """Every ``every`` rollouts, a table of samples: in TensorBoard's texts, and on the terminal with ``verbose=1``.

    It shows the rollout that was last trained on, whose KL (nats per response, k1) is known. A score that rises while
    the samples turn to gibberish is a reward function being exploited; no curve shows that.
    """

    def __init__(self, every: int = 10, *, random_rows: int = 2, width: int = 60, verbose: int = 0) -> None:
        if every < 1 or random_rows < 0:
            raise ValueError(f"every={every}, random_rows={random_rows}: at least 1 and 0 are needed")
        super().__init__(verbose)
        self.every, self.random_rows, self.width = every, random_rows, width
        self.rollouts = 0
        self.texts: list[list[tuple[Any, Any]]] = []
        self.generator = np.random.default_rng(0)  # its own: looking must not change the run

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

    def rows(self) -> list[tuple[str, ...]]:
        """The table's rows, as text."""
        policy = self.model.policy
        if not isinstance(policy, LanguageModelPolicy):
            raise ValueError(f"SampleTable is for a LanguageModelPolicy; this is a {type(policy).__name__}")
        if policy.trained_on is None:
            return []  # the first rollout is not trained on yet
        score, kl = policy.trained_on
        texts = [pair for step in self.texts for pair in step]
        middle = self.generator.choice(len(score), min(self.random_rows, len(score)), replace=False).tolist()
        chosen = {"best": int(score.argmax()), "worst": int(score.argmin())}
        chosen |= {f"random {number}": row for number, row in enumerate(middle, start=1)}
        return [
            (name, f"{score[row]:.3g}", "" if kl is None else f"{kl[row]:.3g}", *map(str, texts[row]))
            for name, row in chosen.items()
        ]


def as_text(rows: list[tuple[str, ...]], width: int) -> str:
    """A table for the terminal, its long texts cut to ``width`` characters."""
    cells = [[_one_line(cell, width) for cell in row] for row in (HEADER, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(" | ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)) for row in cells)


def as_markdown(rows: list[tuple[str, ...]]) -> str:
    """A table as TensorBoard's text tab shows it."""
    lines = [" | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in row) for row in (HEADER, *rows)]
    return "\n".join(f"| {line} |" for line in (lines[0], " | ".join(["---"] * len(HEADER)), *lines[1:]))


def _one_line(text: str, width: int) -> str:
    # Line breaks, and what else a terminal would take as an order to it.
    text = "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return text if len(text) <= width else text[: width - 3] + "..."
