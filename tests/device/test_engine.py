"""When a model uses its device's engine, what it says, what it saves, and what happens where recording fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from sb3_ppo_ext import PPOX, AdaptiveKL, Threshold
from sb3_ppo_ext.artifacts import CompileError
from sb3_ppo_ext.device import engine
from sb3_ppo_ext.device.buffers import DeviceRolloutBuffer
from sb3_ppo_ext.device.capture import CudaGraphs
from sb3_ppo_ext.divergence import DivergedError
from tests.device.rehearsal import Rehearsed, on_cpu, parameters_of  # noqa: F401  # a fixture
from tests.device.test_training import model_of
from tests.environments import Periodic

pytestmark = [
    pytest.mark.usefixtures("on_cpu"),
    pytest.mark.filterwarnings("ignore::sb3_ppo_ext.diagnostics.TrainingWarning"),
]


def test_it_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    model_of("box", compile=True, verbose=1).learn(64)
    assert "PPOX trains by CUDA graphs: compile=True" in capsys.readouterr().out


def test_nothing_is_recorded_twice() -> None:
    model = model_of("box", compile=True).learn(64)
    engine_ = model._compilation.engine
    assert engine_ is not None
    made, recorded = engine_.recordings.made, Rehearsed.recorded
    model.learn(128, reset_num_timesteps=False)
    assert (engine_.recordings.made, Rehearsed.recorded) == (made, recorded) and made == 2


def test_other_parameters_and_settings_are_noticed() -> None:
    settings = {"n_steps": 32, "batch_size": 16}
    model, other = model_of("box", compile=True, **settings).learn(64), model_of("box", compile=False, **settings)
    other.learn(192)
    model.set_parameters(other.get_parameters())  # type: ignore[arg-type]  # its own signature is too narrow
    model.batch_size = 32
    before = parameters_of(model.policy)
    model.learn(64, reset_num_timesteps=False)
    # Near to where the other one ended, not to where the first did; and the step of 32 rows has been taken.
    moved = [(now - before[name]).abs().max().item() for name, now in model.policy.state_dict().items()]
    assert 0 < max(moved) < 0.02
    model.policy.optimizer = torch.optim.Adam(model.policy.parameters(), lr=1e-3)  # new moments elsewhere
    before = parameters_of(model.policy)
    model.learn(64, reset_num_timesteps=False)
    assert any((now != before[name]).any() for name, now in model.policy.state_dict().items())
    assert {state["step"].item() for state in model.policy.optimizer.state.values()} == {6.0}  # 3 epochs of 2


def test_going_on_after_a_load_is_never_having_stopped(tmp_path: Path) -> None:
    controlled = AdaptiveKL(3e-3, 1e-3, Threshold(2.0, 1.5), every="minibatch")
    env = DummyVecEnv([Periodic, Periodic])
    settings: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "learning_rate": controlled, "seed": 1}
    whole = PPOX("MlpPolicy", env, device="cpu", compile=True, **settings).learn(64)
    whole.save(tmp_path / "model")
    again = PPOX.load(tmp_path / "model", env=DummyVecEnv([Periodic, Periodic]), compile=True)
    assert type(again.rollout_buffer) is DeviceRolloutBuffer
    assert again.knobs.numbers() == whole.knobs.numbers() and whole.knobs.numbers()["learning_rate"] != 3e-3
    for model in (again, whole):  # what is drawn is the same, wherever the generators stand
        torch.manual_seed(5)
        model.learn(64, reset_num_timesteps=False)
    for name, tensor in again.policy.state_dict().items():
        torch.testing.assert_close(tensor, whole.policy.state_dict()[name], rtol=0, atol=0)
    assert again.knobs.numbers() == whole.knobs.numbers()


def test_the_saved_file_is_one_for_ppo_too(tmp_path: Path) -> None:
    model_of("box", compile=True).learn(64).save(tmp_path / "model")
    assert type(PPO.load(tmp_path / "model", env=model_of("box").env).rollout_buffer) is RolloutBuffer


def test_a_buffer_the_user_names_is_kept() -> None:
    model = model_of("box", compile=True, rollout_buffer_class=RolloutBuffer).learn(64)
    assert type(model.rollout_buffer) is RolloutBuffer and model._compilation.engine is not None
    assert not model._compilation.update_refused


@pytest.mark.parametrize("compile", [False, "auto"])
def test_the_engine_is_only_used_where_it_is_asked_for(compile: Any) -> None:
    model = model_of("box", compile=compile).learn(64)
    assert type(model.rollout_buffer) is RolloutBuffer and model._compilation.engine is None


class Refusing:
    """A device that records nothing."""

    def record(self, run: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
        raise CompileError("it cannot be recorded as a CUDA graph (out of graphs)")


def test_a_recording_that_fails_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.RECORDERS, "cpu", Refusing)
    with pytest.raises(ValueError, match=r"compile=True: it cannot be recorded .* \(out of graphs\); pass"):
        model_of("box", compile=True).learn(64)


def test_a_nan_stops_the_training() -> None:
    model = model_of("discrete", compile=True).learn(64)
    model.learning_rate = 1e30
    model._setup_lr_schedule()
    with pytest.raises(DivergedError):
        model.learn(640, reset_num_timesteps=False)


class Faked(CudaGraphs):
    """CUDA graphs whose replay is the function itself, or one that ``spoil`` was done to."""

    spoil: Callable[[list[Tensor]], None] | None = None

    def _warm_up(self, run: Any, changed: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        run()

    def _captured(self, run: Any) -> Any:
        class Graph:
            def replay(self) -> None:
                if not Faked.lazy:
                    run()

        return Graph()

    lazy = False


@pytest.mark.parametrize("lazy", [False, True])
def test_a_graph_is_believed_when_it_reproduces_what_it_recorded(monkeypatch: pytest.MonkeyPatch, lazy: bool) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(Faked, "lazy", lazy)
    weight = torch.full((3,), 100.0)

    def run() -> None:
        weight.add_(torch.tensor([1e-3, 0.0, -1e-3]))

    if lazy:  # replays nothing: a change of a hundred-thousandth is missed
        with pytest.raises(CompileError, match="does not reproduce"):
            Faked().record(run, [weight])
    else:
        replay = Faked().record(run, [weight])
        assert weight.tolist() == [100.0] * 3
        replay()
        assert weight[0] > 100
        return
    assert weight.tolist() == [100.0] * 3


def test_what_cannot_be_recorded_says_why_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(2)

    def run() -> None:
        weight.add_(1)
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    with pytest.raises(CompileError, match=r"as a CUDA graph \(operation not permitted when stream is capturing\)"):
        Faked().record(run, [weight])
    assert weight.tolist() == [1, 1]
