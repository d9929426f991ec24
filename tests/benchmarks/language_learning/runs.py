"""One run: held-out success before, a training, held-out success after, and the record of it."""

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
from tests.benchmarks.language_learning.tasks import Task, task_of
from tests.benchmarks.learning.runs import rounded, versions

Success = dict[str, list[float]]  # by kind of response: one number per held-out prompt
SAMPLES = 4  # of the trained policy per held-out prompt, besides the likeliest response


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


def run(order: Mapping[str, Any], before: Success | None = None) -> dict[str, Any]:
    """Trains and evaluates; a training that diverges is a record too, with its error and no success after it."""
    settings, seed = order["settings"], order["seed"]
    torch.set_num_threads(1)
    task = task_of(settings["task"])
    model = model_of(task, settings, seed)
    before = before or held_out_success(model, task)
    curve = TrainingSuccess()
    callbacks: list[BaseCallback] = [curve]
    if share := settings.get("value_pretraining"):
        callbacks.append(ValuePretraining(int(share * settings["responses"])))
    start, outcome = time.process_time(), dict[str, Any]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.learn(settings["responses"], callbacks, log_interval=None)
    except (ValueError, FloatingPointError) as error:
        outcome = {"error": f"{type(error).__name__}: {error}"[:500]}
    outcome |= {"core_seconds": round(time.process_time() - start, 1), "responses": model.num_timesteps}
    outcome |= {"curve": curve.points, "constant": rounded(task.constant), "before": before}
    if "error" not in outcome:
        outcome["after"] = held_out_success(model, task)
    return {**order, **outcome, "versions": versions()}
