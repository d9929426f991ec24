"""One run: a training, held-out success before it, half way and after it, and the record of all that."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv, ValuePretraining
from sb3_ppo_ext.language.evaluation.evaluate import evaluate, undisturbed, whole_text
from tests.benchmarks.language_learning.supervised import supervise
from tests.benchmarks.language_learning.tasks import Task, task_of
from tests.benchmarks.learning.runs import rounded, versions

Success = dict[str, list[float]]  # by kind of response: one number per held-out prompt
SAMPLES = 4  # of the trained policy per held-out prompt, besides the likeliest response
SPANS = 2  # of the training, with an evaluation after each


class TrainingSuccess(BaseCallback):
    """(responses, their rate of success) of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, float]] = []
        self.found: list[bool] = []

    def _on_step(self) -> bool:
        self.found += [info["is_success"] for info in self.locals["infos"]]
        return True

    def _on_rollout_end(self) -> None:
        self.points.append((self.num_timesteps, rounded(float(np.mean(self.found)))))
        self.found.clear()


def model_of(task: Task, settings: Mapping[str, Any], seed: int) -> PPOX:
    """The algorithm with an arm's settings."""
    env = PromptVecEnv(**task.environment, n_envs=settings["n_envs"], group_size=settings["group_size"])
    policy = {"model": task.model, "lora": settings["lora"], "reference": False, **settings["policy"]}
    return PPOX(
        LanguageModelPolicy,
        env,
        policy_kwargs=policy,
        rollout_buffer_kwargs=dict(settings.get("buffer", {})),
        seed=seed,
        device="cpu",
        compile=False,
        **settings["arguments"],
    )


def held_out_success(model: PPOX, task: Task) -> Success:
    """Success at the held-out prompts: of the likeliest response, and the mean of ``SAMPLES``."""
    policy, env = model.policy, model.get_env()
    assert isinstance(policy, LanguageModelPolicy) and isinstance(env, PromptVecEnv)
    held_out = env.task.with_prompts(**task.held_out)
    with undisturbed(policy, 0, None):
        found = evaluate(policy, held_out, n=SAMPLES, batch_size=64, answer_of=whole_text)
    assert found.greedy.success is not None and found.sampled is not None and found.sampled.success is not None
    return {
        "greedy": found.greedy.success[:, 0].astype(float).tolist(),
        "sampled": found.sampled.success.mean(axis=1).tolist(),
    }


class Evaluations(BaseCallback):
    """Held-out success before the training and after each of ``SPANS`` equal spans of it, with the CPU seconds so far.

    ``before`` is the first of them where it is known already. Evaluating is not counted in the seconds.
    """

    def __init__(self, task: Task, responses: int, before: Success | None) -> None:
        super().__init__()
        self.task, self.responses, self.before = task, responses, before
        self.found: list[dict[str, Any]] = []
        self.evaluating = 0.0

    def core_seconds(self) -> float:
        """CPU seconds of the training so far."""
        return round(time.process_time() - self.start - self.evaluating, 1)

    def _on_training_start(self) -> None:
        self.start = time.process_time()
        self._evaluate(self.before)

    def _on_rollout_start(self) -> None:
        spans = len(self.found)  # those before the next evaluation; the last one is left to the end of the training
        if spans < SPANS and self.model.num_timesteps * SPANS >= spans * self.responses:
            self._evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self._evaluate()

    def _evaluate(self, known: Success | None = None) -> None:
        spent, start = self.core_seconds(), time.process_time()
        assert isinstance(self.model, PPOX)
        success = known or held_out_success(self.model, self.task)
        self.found.append({"responses": self.model.num_timesteps, "core_seconds": spent, **success})
        self.evaluating += time.process_time() - start


def run(order: Mapping[str, Any], before: Success | None = None) -> dict[str, Any]:
    """Trains and evaluates; a training that diverges is a record too, with its error and the evaluations until then."""
    settings, seed = order["settings"], order["seed"]
    torch.set_num_threads(1)
    task = task_of(settings["task"])
    model = model_of(task, settings, seed)
    curve, evaluations = TrainingSuccess(), Evaluations(task, settings["responses"], before)
    callbacks: list[BaseCallback] = [curve, evaluations]  # evaluated before values are pre-trained
    if share := settings.get("value_pretraining"):
        callbacks.append(ValuePretraining(int(share * settings["responses"])))
    outcome = dict[str, Any]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if settings.get("supervised"):
                supervise(model, task.answers, settings["responses"], evaluations)
            else:
                model.learn(settings["responses"], callbacks, log_interval=None)
    except (ValueError, FloatingPointError) as error:
        outcome = {"error": f"{type(error).__name__}: {error}"[:500]}
    outcome |= {"core_seconds": evaluations.core_seconds(), "responses": model.num_timesteps}
    outcome |= {"curve": curve.points, "constant": rounded(task.constant), "evaluations": evaluations.found}
    return {**order, **outcome, "versions": versions()}
