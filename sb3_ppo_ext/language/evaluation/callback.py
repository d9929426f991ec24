"""Evaluation on held-out prompts during training."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat

from sb3_ppo_ext.distributed.shards import n_envs_of_all
from sb3_ppo_ext.language.envs.prompt_env import PromptTask
from sb3_ppo_ext.language.evaluation.estimators import standard_error
from sb3_ppo_ext.language.evaluation.evaluate import (
    AnswerOf,
    Evaluation,
    descriptions,
    evaluate,
    measures,
    undisturbed,
    whole_text,
)
from sb3_ppo_ext.language.evaluation.tables import HEADER, shown_rows, write_rows
from sb3_ppo_ext.language.inputs import at_least
from sb3_ppo_ext.language.monitoring.samples import as_markdown
from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

PerPrompt = dict[str, np.ndarray]  # name of a measure -> [P]


class PromptEvalCallback(BaseCallback):
    """Every ``every`` rollouts, before the first and after the last, the policy's responses to held-out prompts.

    The task is that of the training environment: its template, parser, reward functions and ``success``. Under
    ``eval/`` the log has ``score`` and ``success_rate`` of the likeliest responses, and of n samples ``pass@k``,
    ``maj@k`` (the commonest of k answers) and ``best@k`` (the expected best score of k). Each has its ``..._stderr``,
    whose independent observations are the prompts; ``metric`` has its ``..._gain`` too, the difference to the first
    evaluation prompt by prompt. ``evaluate_now()`` does it at any time.

    Training is as it would be without it: the samples have random numbers of their own, the same in every evaluation.

    :param prompts: prompts, or a table of prompts and columns, as ``PromptVecEnv`` takes them; at most as long as those
        of training
    :param columns: of these prompts, for the reward functions
    :param n: samples per prompt; 0: the greedy responses only
    :param k: how many of them pass@k and the like are of; None: 1, 4 and n
    :param every: rollouts from one evaluation to the next
    :param eval_before: whether the policy is evaluated before the first rollout
    :param temperature: of the samples; None: that of training
    :param metric: by which the best model is chosen, and of which the gain is reported; None: "success_rate", or
        "score" where the task has no rule of success
    :param folder: where the tables ``step_N.jsonl`` of all responses and ``best_model.zip`` are written; None: nowhere
    :param by: a column, by whose values ``metric`` is reported as well
    :param answer_of: the answer in a response, for the majority; it returns None where there is none
    :param batch_size: responses at a time; None: as many as training environments
    :param table_rows: responses that TensorBoard shows
    :param seed: of the samples
    :param changes: arguments of ``PromptVecEnv`` that are to differ from the training environment's: another
        ``reward_fn``, a ``success``
    """

    rank_zero_only = True  # of several processes: the others wait

    def __init__(
        self,
        prompts: Any,
        columns: Mapping[str, Iterable[Any]] | None = None,
        *,
        n: int = 8,
        k: Sequence[int] | None = None,
        every: int = 10,
        eval_before: bool = True,
        temperature: float | None = None,
        metric: str | None = None,
        folder: str | Path | None = None,
        by: str | None = None,
        answer_of: AnswerOf = whole_text,
        batch_size: int | None = None,
        table_rows: int = 8,
        seed: int = 0,
        verbose: int = 0,
        **changes: Any,
    ) -> None:
        super().__init__(verbose)
        self.n, self.every = at_least(0, "n", n), at_least(1, "every", every)
        self.k = ks_of(k, self.n)
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature={temperature}: above 0 is needed (greedy responses are there in any case)")
        self.batch_size = None if batch_size is None else at_least(1, "batch_size", batch_size)
        self.table_rows = at_least(0, "table_rows", table_rows)
        self.prompts, self.columns, self.changes = prompts, columns, changes
        self.eval_before, self.temperature, self.metric, self.by = eval_before, temperature, metric, by
        self.folder = None if folder is None else Path(folder)
        self.answer_of, self.seed = answer_of, seed
        self.task: PromptTask | None = None
        self.first: dict[str, list[float]] = {}  # of the first evaluation, by prompt
        self.evaluated_at: int | None = None  # timesteps of the last evaluation
        self.best, self.best_step = -np.inf, 0
        self.results: dict[str, float] = {}  # of the last evaluation, as logged

    def _init_callback(self) -> None:
        if not isinstance(self.model.policy, LanguageModelPolicy):
            raise ValueError(
                f"PromptEvalCallback is for a LanguageModelPolicy; this is a {type(self.model.policy).__name__}: use "
                "EvalCallback"
            )
        if self.task is None:
            self.task = self._held_out_task()

    def _held_out_task(self) -> PromptTask:
        """The task of the training environment with the held-out prompts."""
        env = self.training_env
        if not env.has_attr("task") or not isinstance(of_training := env.get_attr("task", [0])[0], PromptTask):
            raise ValueError(
                "PromptEvalCallback takes its task from a PromptVecEnv or PromptEnv, and the training environment is "
                "neither: use EvalCallback with an environment of your own"
            )
        task = of_training.with_prompts(self.prompts, self.columns, **self.changes)
        trained, held_out = set(of_training.source.prompt_ids()), task.source.prompt_ids()
        if seen := sum(prompt in trained for prompt in held_out):
            warnings.warn(
                f"{seen} of the {len(held_out)} prompts of the evaluation are prompts of training too: what it "
                "measures is partly memory. Leave them out of one of the two",
                stacklevel=2,
            )
        if self.by is not None and self.by not in task.source.columns:
            raise ValueError(f"by={self.by!r}: no such column; there are {', '.join(map(repr, task.source.columns))}")
        return task

    def _on_training_start(self) -> None:
        if self.model.num_timesteps == 0:  # a new run
            self.first, self.evaluated_at, self.best, self.best_step = {}, None, -np.inf, 0

    def _on_rollout_start(self) -> None:
        steps = self.model.num_timesteps
        size = self.model.n_steps * n_envs_of_all(self.model)  # type: ignore[attr-defined]  # of PPOX
        due = self.eval_before if self.evaluated_at is None else steps // size % self.every == 0
        if due and self.evaluated_at != steps:
            self.evaluate_now()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if self.evaluated_at != self.model.num_timesteps:
            self.evaluate_now()

    def evaluate_now(self) -> dict[str, float]:
        """Evaluates, logs, writes the table, and saves the model if it is the best; returns what it logs."""
        task, policy = self.task, self.model.policy
        assert task is not None and isinstance(policy, LanguageModelPolicy)
        with undisturbed(policy, self.seed, self.temperature):
            rows = self.batch_size or n_envs_of_all(self.model)
            found = evaluate(policy, task, n=self.n, batch_size=rows, answer_of=self.answer_of)
        self.evaluated_at = self.model.num_timesteps
        per_prompt = measures(found, self.k)
        metric = self._metric(per_prompt)
        self.first = self.first or {name: values.tolist() for name, values in per_prompt.items()}
        self.results = self._records(per_prompt, metric) | descriptions(found)
        self._log(found, {f"eval/{name}": value for name, value in self.results.items()})
        if self.folder is not None:
            write_rows(self.folder, task, found, self.evaluated_at)
        if self.results[metric] > self.best:
            self.best, self.best_step = self.results[metric], self.evaluated_at
            if self.folder is not None:
                self.model.save(self.folder / "best_model.zip")
        return self.results

    def _metric(self, per_prompt: PerPrompt) -> str:
        metric = self.metric or ("success_rate" if "success_rate" in per_prompt else "score")
        if metric not in per_prompt:
            hint = "; without success= of the environment there are no rates of success" if "success" in metric else ""
            raise ValueError(f"metric={metric!r}: one of {', '.join(map(repr, per_prompt))} is needed{hint}")
        return metric

    def _records(self, per_prompt: PerPrompt, metric: str) -> dict[str, float]:
        assert self.task is not None
        records: dict[str, float] = {}
        for name, values in per_prompt.items():
            records |= {name: float(values.mean()), f"{name}_stderr": standard_error(values)}
        if len(self.first.get(metric, [])) == len(per_prompt[metric]):
            gain = per_prompt[metric] - np.array(self.first[metric])
            records |= {f"{metric}_gain": float(gain.mean()), f"{metric}_gain_stderr": standard_error(gain)}
        if self.by is not None:
            labels = [str(value) for value in self.task.source.columns[self.by]]
            for label in sorted(set(labels)):
                chosen = [row for row, other in enumerate(labels) if other == label]
                records[f"{metric}/{label}"] = float(per_prompt[metric][chosen].mean())
        return records

    def _log(self, found: Evaluation, records: dict[str, float]) -> None:
        """Writes past the logger's pending values, which are those of a rollout that is not over."""
        assert self.task is not None
        step = self.model.num_timesteps
        row = {"time/total_timesteps": step, **records}
        # A breakdown's names may be too long for the terminal's table.
        excluded: dict[str, tuple[str, ...]] = {
            name: ("stdout", "log") if name.count("/") > 1 else ("",) for name in row
        }
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat):
                table = as_markdown(shown_rows(self.task, found, self.table_rows), HEADER)
                output.writer.add_text("eval/responses", table, step)
                output.write(records, {name: ("",) for name in records}, step)
            elif isinstance(output, KVWriter):
                output.write(row, excluded, step)
        if self.verbose:
            print(f"step {step}: " + ", ".join(f"{name} {value:.3g}" for name, value in self.results.items()))

    def state_dict(self) -> dict[str, Any]:
        """The first evaluation, the best, and the time of the last one, for a run that is resumed."""
        return {"first": self.first, "evaluated_at": self.evaluated_at, "best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict()``."""
        vars(self).update(state)


def ks_of(k: Sequence[int] | None, n: int) -> list[int]:
    """The numbers of samples that are judged together; ``ValueError`` for more than there are."""
    if k is None:
        return sorted({count for count in (1, 4, n) if 0 < count <= n})
    counts = [at_least(1, "k", count) for count in k]
    if too_many := [count for count in counts if count > n]:
        raise ValueError(f"k={list(k)}: {too_many[0]} of n={n} samples; raise n, or leave it out")
    return counts
