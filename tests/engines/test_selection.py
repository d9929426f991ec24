"""Whether to compile is decided by the planned work, said once, and falls back with the reason; threads likewise."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines.cpu.threads import MANY_THREADS_FROM, computing_with, threads_for
from sb3_ppo_ext.engines.selection import CompileWarning, planned_work
from tests.environments import Toy

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")

SMALL: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}
LONG = 10_000_000


def model_of(**options: Any) -> PPOX:
    return PPOX("MlpPolicy", Toy(), **{**SMALL, **options})


def planned(model: PPOX, total_timesteps: Any, **options: Any) -> bool:
    model._setup_learn(total_timesteps, **options)
    assert model._engines.compiles is not None
    return model._engines.compiles


def test_auto_compiles_long_trainings_and_not_short_ones() -> None:
    assert not planned(model_of(), 1_000)
    assert planned(model_of(), LONG)
    assert not planned(model_of(compile=False), LONG)
    assert planned(model_of(compile=True), 1_000)


def test_the_decision_is_the_same_however_the_work_is_cut_into_calls() -> None:
    model = model_of()
    model._n_updates, model.num_timesteps = 500_000, 8_000_000  # what earlier calls of learn() have done
    assert planned(model, 1_000, reset_num_timesteps=False)
    assert planned(model, 1_000)  # and as the first of them counts anew


def test_planned_work_counts_epochs_and_steps() -> None:
    model = model_of()
    # 100 timesteps: 4 rollouts of 32, of 2 epochs each.
    assert planned_work(model._run(), 100) == (8, 128)
    model._n_updates = 6  # 3 rollouts behind it
    assert planned_work(model._run(), 100) == (14, 224)


@pytest.mark.parametrize("endless", [float("inf"), 10**400])
def test_endless_work_is_worth_compiling_and_is_said_to_be_endless(
    endless: float, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(verbose=1)
    capsys.readouterr()
    assert planned(model, endless) and not planned(model_of(compile=False), endless)
    assert capsys.readouterr().out == "PPOX trains compiled: learn() is to end by a callback alone\n"


def test_the_choice_is_printed_in_one_line_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(verbose=1)
    capsys.readouterr()
    model._setup_learn(1_000)
    printed = capsys.readouterr().out
    # 32 rollouts of 2 epochs of 2 minibatches
    assert (
        printed
        == "PPOX trains eagerly: 128 minibatches are planned, which would not repay the time it takes to compile\n"
    )
    model._setup_learn(2_000)
    assert capsys.readouterr().out == ""
    model._setup_learn(LONG)
    printed = capsys.readouterr().out
    assert printed.startswith("PPOX trains compiled: 1,250,000 minibatches are planned, which saves about ")
    model_of(verbose=0)._setup_learn(LONG)
    assert capsys.readouterr().out == ""


def refusing(method: str) -> type[ActorCriticPolicy]:
    """A policy that branches on numbers, which no trace can follow."""

    def branching(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = getattr(ActorCriticPolicy, method)(self, *args, **kwargs)
        return out if out[0].sum() < 1e9 else None

    return type("Branching", (ActorCriticPolicy,), {method: branching})


def test_auto_falls_back_once_with_the_reason() -> None:
    both = type("Both", (refusing("forward"), refusing("evaluate_actions")), {})
    eager = PPOX(both, Toy(), compile=False, **SMALL).learn(64).learn(64, reset_num_timesteps=False)
    model = PPOX(both, Toy(), **SMALL)
    model._engines.compiles = True  # as in a long training
    with pytest.warns(
        CompileWarning, match='compile="auto": acting is not compiled: the policy cannot be tr'
    ) as warned:
        model.learn(64)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(64, reset_num_timesteps=False)
    for name, theirs in eager.policy.state_dict().items():
        assert torch.equal(model.policy.state_dict()[name], theirs), name


def test_compile_true_raises_instead() -> None:
    with pytest.raises(ValueError, match=r"compile=True: the policy cannot be traced.*compile=False"):
        PPOX(refusing("forward"), Toy(), compile=True, **SMALL).learn(64)


@pytest.mark.slow
def test_a_missing_compiler_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("SB3_PPO_EXT_CACHE_DIR", str(tmp_path))
    model = model_of()
    model._engines.compiles, model._engines.actor_refused = True, True  # the update alone is to be compiled
    with pytest.warns(CompileWarning, match=r"there is no C\+\+ compiler .*install one") as warned:
        model.learn(64)
    assert len(warned) == 1 and model.num_timesteps == 64
    assert list(tmp_path.iterdir()) == []  # nothing half written


class Threads(BaseCallback):
    seen: int = 0

    def _on_step(self) -> bool:
        self.seen = torch.get_num_threads()
        return True


@pytest.mark.parametrize(("compile", "width", "expected"), [("auto", 8, 1), ("auto", 1024, 2), (False, 8, 2)])
def test_small_networks_learn_on_one_thread_and_all_come_back(compile: Any, width: int, expected: int) -> None:
    with computing_with(torch.get_num_threads()):
        torch.set_num_threads(2)
        callback = Threads()
        model_of(compile=compile, policy_kwargs={"net_arch": [width, width]}).learn(32, callback)
        assert callback.seen == expected
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyboardInterrupt):
            model_of(compile=compile).learn(64, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert torch.get_num_threads() == 2


def test_threads_follow_the_arithmetic_of_a_minibatch() -> None:
    linear = torch.nn.Linear(99, 100)  # 10,000 parameters; 6 operations for each and each row
    rows = int(MANY_THREADS_FROM / 6 / 10_000)
    assert threads_for(linear, rows, 8) == 1
    assert threads_for(linear, rows + 1, 8) == 8
    assert threads_for(torch.nn.Conv2d(1, 1, 3), 1, 8) == 8
    with computing_with(1_000):
        assert torch.get_num_threads() < 1_000  # never more than there were
