"""`ppox train` on questions from a settings file alone, and `ppox optimize` of a language model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml

pytest.importorskip("transformers")

from sb3_ppo_ext_zoo.cli import main
from sb3_ppo_ext_zoo.language_search import search_for
from sb3_ppo_ext_zoo.reasoning import shared_task
from sb3_ppo_ext_zoo.search import convert_ppox_params, sample_ppox_params

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv
from sb3_ppo_ext.language.envs.prompt_vec_env import group_ids_of
from tests.language import reasoning_stand_in, tiny, words

optuna.logging.set_verbosity(optuna.logging.WARNING)

SETTINGS: dict[str, Any] = {
    "policy": "sb3_ppo_ext.language.LanguageModelPolicy",
    "policy_kwargs": {"model": "model", "value": "none"},
    "env_kwargs": {
        **{"tasks": {"sums": {"largest": 20}}, "tokenizer": "model", "size": 12, "held_out": 4, "chat": False},
        **{"answer": "text", "max_new_tokens": 4, "hint": ""},
    },
    "eval_env_kwargs": {"split": "held_out"},
    "vec_env": {"prompts": {"group_size": 4}},
    "rollout_buffer_kwargs": {"group_advantage": "grpo"},
    **{"n_envs": 8, "n_timesteps": 32, "n_steps": 2, "batch_size": 8, "n_epochs": 1, "gamma": 1.0},
}
COMMAND = ["--env", "Reasoning-v0", "-conf", "mine.yml", "--seed", "1", "--verbose", "0"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model, its tokenizer and a settings file."""
    monkeypatch.chdir(tmp_path)
    reasoning_stand_in.install(monkeypatch)
    shared_task.cache_clear()
    model, tokenizer = tiny.model(vocabulary=16), words.tokenizer()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write(SETTINGS)
    return tmp_path


def write(settings: dict[str, Any]) -> None:
    Path("mine.yml").write_text(yaml.safe_dump({"Reasoning-v0": settings}), encoding="utf-8")


def trained(number: int) -> PPOX:
    return PPOX.load(f"logs/ppox/Reasoning-v0_{number}/Reasoning-v0.zip", device="cpu")


def test_questions_in_groups_are_trained_on_and_evaluated_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[PromptVecEnv] = []
    original = PromptVecEnv.of_task.__func__  # type: ignore[attr-defined]  # of a class method

    def of_task(cls: Any, *arguments: Any, **options: Any) -> PromptVecEnv:
        made.append(original(cls, *arguments, **options))
        return made[-1]

    monkeypatch.setattr(PromptVecEnv, "of_task", classmethod(of_task))
    assert main(["train", *COMMAND, "--eval-freq", "16", "--eval-episodes", "4"]) == 0
    training, held_out = made if made[0].num_envs == 8 else made[::-1]
    assert (training.num_envs, training.group_size, held_out.num_envs) == (8, 4, 1)
    ids = group_ids_of(training)
    assert ids is not None and (ids.reshape(2, 4) == ids[::4, None]).all()
    assert (len(training.task.source.texts), len(held_out.task.source.texts)) == (12, 4)
    assert not set(training.task.source.texts) & set(held_out.task.source.texts)
    assert training.observation_space == held_out.observation_space
    assert not held_out.order.shuffle
    assert np.load("logs/ppox/Reasoning-v0_1/evaluations.npz")["results"].shape == (2, 4)
    model = trained(1)
    assert isinstance(model.policy, LanguageModelPolicy) and model.num_timesteps == 32


def test_it_is_played(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", *COMMAND, "--eval-freq", "-1"])
    main(["enjoy", "--env", "Reasoning-v0", "-n", "5", "--env-kwargs", "split:'held_out'"])
    printed = capsys.readouterr().out
    assert "Success rate:" in printed and sum(" + " in line for line in printed.splitlines()) >= 5


def test_a_search_varies_the_training_and_keeps_the_model() -> None:
    write({**SETTINGS, "policy_kwargs": {**SETTINGS["policy_kwargs"], "lora": {"r": 2}}})
    study = ["--study-name", "sums", "--storage", "sqlite:///sums.db"]
    options = ["--n-trials", "2", "--no-optim-plots", "--n-evaluations", "1", "--eval-episodes", "4"]
    assert main(["optimize", *COMMAND, *options, *study]) == 0
    trial = optuna.load_study(study_name="sums", storage="sqlite:///sums.db").best_trial
    assert trial.value is not None and "net_arch" not in trial.params
    main(["train", *COMMAND, "--eval-freq", "-1", *study])
    model, expected = trained(2), convert_ppox_params(trial.params)  # 1 is the search
    assert (model.n_epochs, model.batch_size, model.surrogate) == tuple(
        expected[name] for name in ("n_epochs", "batch_size", "surrogate")
    )
    assert model.policy_kwargs["lora"] == {"r": 2}
    assert model.rollout_buffer.settings.group_advantage == "grpo"  # type: ignore[attr-defined]  # of tokens


def sampled(policy: object, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    with search_for(policy):
        return sample_ppox_params(trial, 0, 16, {}), dict(trial.params)


def test_every_trial_of_a_language_model_is_one_that_ppox_takes() -> None:
    names = set()
    for seed in range(50):
        kwargs, params = sampled(LanguageModelPolicy, seed)
        assert convert_ppox_params(params) == kwargs
        assert kwargs["batch_size"] <= 16 and "policy_kwargs" not in kwargs and "n_steps" not in kwargs
        assert kwargs["clip_range_high"] is None or kwargs["clip_range_high"] == 1.4 * kwargs["clip_range"]
        names.add(frozenset(params))
        PPOX(
            "MlpPolicy", "Pendulum-v1", **{**kwargs, "ref_kl_coef": 0.0, "surrogate": "clip"}, n_steps=16, device="cpu"
        )
    assert len(names) == 1
    assert "net_arch" in sampled(torch.nn.Module, 0)[1]


def test_what_cannot_be_is_refused(build: Callable[..., PPOX]) -> None:
    with pytest.raises(ValueError, match=r"vec_env='prompts': CartPole-v1 is a CartPoleEnv; a PromptEnv is needed"):
        build("vec_env: {prompts: {group_size: 2}}")
    write({**SETTINGS, "eval_env_kwargs": {"split": "test"}})
    with pytest.raises(ValueError, match="split='test': one of"):
        main(["train", *COMMAND, "--eval-freq", "16"])
    write({**SETTINGS, "env_kwargs": {**SETTINGS["env_kwargs"], "held_out": 0}})
    with pytest.raises(ValueError, match=r"split='held_out': there are no such questions with held_out=0"):
        main(["train", *COMMAND, "--eval-freq", "16"])
