"""The responses of an evaluation as a JSONL file and as a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sb3_ppo_ext.language.envs.prompt_env import PromptTask
from sb3_ppo_ext.language.evaluation.evaluate import Evaluation, Responses
from sb3_ppo_ext.saving import save_atomically

HEADER = ("prompt", "response", "score", "success")


def response_rows(task: PromptTask, evaluation: Evaluation, step: int) -> Iterator[dict[str, Any]]:
    """One row per response: ``sample`` is "greedy", or the number of the sample."""
    for index, prompt in enumerate(task.source.texts):
        yield {"step": step, "index": index, "prompt": prompt, "sample": "greedy", **_row(evaluation.greedy, index, 0)}
        if evaluation.sampled is not None:
            for number in range(evaluation.sampled.score.shape[1]):
                response = _row(evaluation.sampled, index, number)
                yield {"step": step, "index": index, "prompt": prompt, "sample": number, **response}


def _row(responses: Responses, index: int, number: int) -> dict[str, Any]:
    row = {"response": responses.texts[index][number], "score": float(responses.score[index, number])}
    if responses.success is not None:
        row["success"] = bool(responses.success[index, number])
    length, cut_off = responses.length[index, number], responses.cut_off[index, number]
    return {**row, "tokens": int(length), "cut_off": bool(cut_off)}


def write_rows(folder: Path, task: PromptTask, evaluation: Evaluation, step: int) -> Path:
    """Writes ``step_N.jsonl``; a file of the same step, which a killed run has left, is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step}.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in response_rows(task, evaluation, step)]
    save_atomically(path, lambda file: file.writelines(line.encode() for line in lines))
    return path


def shown_rows(task: PromptTask, evaluation: Evaluation, count: int) -> list[tuple[str, ...]]:
    """The greedy responses to the first ``count`` prompts, as text under ``HEADER``."""
    greedy = evaluation.greedy
    rows: list[tuple[str, ...]] = []
    for index, prompt in enumerate(task.source.texts[:count]):
        success = "" if greedy.success is None else ("yes" if greedy.success[index, 0] else "no")
        rows.append((str(prompt), str(greedy.texts[index][0]), f"{greedy.score[index, 0]:.3g}", success))
    return rows
