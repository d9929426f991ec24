"""Runs whose responses a sampler draws, with refill: stopped and resumed they end as those that never stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv
from sb3_ppo_ext.language.model.packed_layers import Layout
from sb3_ppo_ext.language.model.samplers import CopySampler
from tests.checkpoints.runs import Steps, assert_same, trained
from tests.language import setups

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")

HALF, WHOLE = Layout(torch.bfloat16, packed=False), Layout(torch.float32, packed=False)


def of_half_of_the_prompts(prompts: Any, responses: Any) -> list[float]:
    """Scores that differ within the groups of two prompts of four."""
    return [float(len(prompt) < 3 and sum(response) % 2) for prompt, response in zip(prompts, responses, strict=True)]


def environment() -> PromptVecEnv:
    return setups.env_of(of_half_of_the_prompts, 8, group_size=4)


def model_of(sampler: Any) -> PPOX:
    return setups.ppox(
        environment=environment(), policy_kwargs={"value": "none", "sampler": sampler}, n_steps=1, compile=False,
        rollout_buffer_kwargs={"group_advantage": "rloo", "dynamic_sampling": "refill"}, learning_rate=1e-2,
    )  # fmt: skip


def both(make: Callable[[], PPOX], folder: Path) -> tuple[PPOX, PPOX]:
    """A run with a stop in the middle, and one without."""
    runs = []
    for name, stops in (("broken", [40]), ("unbroken", [])):
        steps = {"total": 64, "stops": stops, "callbacks": lambda: [Steps()]}
        runs.append(trained(make, environment, folder / name, **steps)[0])  # type: ignore[arg-type]
    return runs[0], runs[1]


def test_continuous_batching_goes_on_to_the_bit(tmp_path: Path) -> None:
    assert_same(*both(partial(model_of, "continuous_batching"), tmp_path))


def test_a_copy_goes_on_in_the_layout_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another layout, which a second measurement may find the fastest, rounds otherwise."""
    measured = iter([HALF, HALF])  # one for each of the runs; a third is of another outcome
    monkeypatch.setattr("sb3_ppo_ext.language.model.samplers.fastest_layout", lambda *_, **__: next(measured, WHOLE))
    broken, unbroken = both(partial(model_of, "auto"), tmp_path)
    for model in (broken, unbroken):
        assert isinstance(model.policy, LanguageModelPolicy) and isinstance(model.policy.sampler, CopySampler)
        assert model.policy.sampler.copy is not None and model.policy.sampler.copy.layout == HALF
    assert_same(broken, unbroken)


def test_a_layout_that_the_settings_exclude_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ppo_ext.language.model.samplers.fastest_layout", lambda *_, **__: HALF)
    model = model_of("auto")
    model.learn(16)
    model.save(tmp_path / "model.zip")
    kwargs = {**model.policy_kwargs, "sampler": "float32"}
    loaded = PPOX.load(tmp_path / "model.zip", env=environment(), custom_objects={"policy_kwargs": kwargs})
    assert isinstance(loaded.policy, LanguageModelPolicy) and isinstance(loaded.policy.sampler, CopySampler)
    assert loaded.policy.sampler.layout is None
