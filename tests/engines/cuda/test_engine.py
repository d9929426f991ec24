"""The device's engine: when a model uses it, what it prints and saves, and what happens where recording fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from sb3_ppo_ext import PPOX, AdaptiveKL, Threshold
from sb3_ppo_ext.engines.cuda import actor, engine
from sb3_ppo_ext.engines.cuda.engine import CudaEngine
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.rows import COSTS, Costs
from sb3_ppo_ext.engines.selection import CompileWarning
from sb3_ppo_ext.monitoring.divergence import DivergedError
from sb3_ppo_ext.rollout.device_buffers import DeviceDictRolloutBuffer, DeviceRolloutBuffer
from tests.cases import model_of
from tests.engines.cuda.rehearsal import Rehearsed, on_cpu, parameters_of  # noqa: F401  # a fixture
from tests.engines.extractors import Extractor
from tests.environments import Periodic

pytestmark = [
    pytest.mark.usefixtures("on_cpu"),
    pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning"),
]


def test_it_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    model_of("box", compile=True, verbose=1).learn(64)
    assert "PPOX trains by CUDA graphs: compile=True" in capsys.readouterr().out


def test_nothing_is_recorded_twice() -> None:
    model = model_of("box", compile=True).learn(64)
    engine_ = model._engines.engine
    assert isinstance(engine_, CudaEngine)
    made, recorded = engine_.recordings.made, Rehearsed.recorded
    model.learn(128, reset_num_timesteps=False)
    assert (engine_.recordings.made, Rehearsed.recorded) == (made, recorded) and made == 2


def test_other_parameters_and_settings_are_noticed() -> None:
    settings = {"n_steps": 32, "batch_size": 16}
    model, other = model_of("box", compile=True, **settings).learn(64), model_of("box", compile=False, **settings)
    other.learn(192)
    model.set_parameters(other.get_parameters())
    model.batch_size = 32
    before = parameters_of(model.policy)
    model.learn(64, reset_num_timesteps=False)
    # Near to where the other one ended, not to where the first did; and the step of 32 rows has been taken.
    moved = [(tensor - before[name]).abs().max().item() for name, tensor in model.policy.state_dict().items()]
    assert 0 < max(moved) < 0.02
    model.policy.optimizer = torch.optim.Adam(model.policy.parameters(), lr=1e-3)  # new moments elsewhere
    before = parameters_of(model.policy)
    model.learn(64, reset_num_timesteps=False)
    assert any((tensor != before[name]).any() for name, tensor in model.policy.state_dict().items())
    assert {state["step"].item() for state in model.policy.optimizer.state.values()} == {6.0}  # 3 epochs of 2


def test_going_on_after_a_load_is_never_having_stopped(tmp_path: Path) -> None:
    controlled = AdaptiveKL(3e-3, 1e-3, Threshold(2.0, 1.5), every="minibatch")
    env = DummyVecEnv([Periodic, Periodic])
    settings: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "learning_rate": controlled, "seed": 1}
    whole = PPOX("MlpPolicy", env, device="cpu", compile=True, **settings).learn(64)
    whole.save(tmp_path / "model")
    again = PPOX.load(tmp_path / "model", env=DummyVecEnv([Periodic, Periodic]), compile=True)
    assert again.knobs.numbers() == whole.knobs.numbers() and whole.knobs.numbers()["learning_rate"] != 3e-3
    for model in (again, whole):  # what is drawn is the same, wherever the generators stand
        torch.manual_seed(5)
        model.learn(64, reset_num_timesteps=False)
    assert type(again.rollout_buffer) is type(whole.rollout_buffer) is DeviceRolloutBuffer
    for name, tensor in again.policy.state_dict().items():
        torch.testing.assert_close(tensor, whole.policy.state_dict()[name], rtol=0, atol=0)
    assert again.knobs.numbers() == whole.knobs.numbers()


def test_the_saved_file_is_one_for_ppo_too(tmp_path: Path) -> None:
    model_of("box", compile=True).learn(64).save(tmp_path / "model")
    assert type(PPO.load(tmp_path / "model", env=model_of("box").env).rollout_buffer) is RolloutBuffer


def test_a_buffer_the_user_names_is_kept() -> None:
    model = model_of("box", compile=True, rollout_buffer_class=RolloutBuffer).learn(64)
    assert type(model.rollout_buffer) is RolloutBuffer and model._engines.engine is not None
    assert not model._engines.update_refused


def test_a_buffer_the_user_has_changed_is_kept() -> None:
    model = model_of("box", compile=True)
    steps: list[Any] = []
    original = model.rollout_buffer.add

    def add(*args: Any) -> None:
        steps.append(args)
        original(*args)

    model.rollout_buffer.add = add  # type: ignore[method-assign,assignment]  # as users do
    model.learn(64)
    assert len(steps) == 32


@pytest.mark.parametrize("compile", [False, "auto"])
def test_the_engine_is_not_used_where_little_is_planned(compile: Any) -> None:
    model = model_of("box", compile=compile).learn(64)
    assert type(model.rollout_buffer) is RolloutBuffer and model._engines.engine is None


COST_NOTHING = Costs(1.0, 1.0, 0.0)


def test_auto_uses_the_engine_where_much_is_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = model_of("dict", compile="auto", verbose=1).learn(64)
    assert type(model.rollout_buffer) is DictRolloutBuffer
    monkeypatch.setitem(COSTS, "cpu", COST_NOTHING)
    model.learn(64, reset_num_timesteps=False)
    assert "PPOX trains by CUDA graphs: 24 minibatches are planned, which saves about" in capsys.readouterr().out
    assert type(model.rollout_buffer) is DeviceDictRolloutBuffer and not model._engines.update_refused
    model.save(tmp_path / "model")
    again = PPOX.load(tmp_path / "model", env=model.env)
    assert type(again.rollout_buffer) is again.rollout_buffer_class is DictRolloutBuffer
    again.learn(64, reset_num_timesteps=False)
    assert type(again.rollout_buffer) is DeviceDictRolloutBuffer
    again.compile = False
    again.learn(64, reset_num_timesteps=False)
    assert type(again.rollout_buffer) is DictRolloutBuffer and not again._engines.compiles


def test_what_is_learned_is_the_same_however_it_is_cut_into_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = model_of("box", compile=True), model_of("box", compile="auto")
    eager = model_of("box", compile=False)
    for model in (whole, eager):
        torch.manual_seed(5)
        model.learn(192)
    torch.manual_seed(5)
    pieces.learn(64)  # eagerly
    monkeypatch.setitem(COSTS, "cpu", COST_NOTHING)
    pieces.learn(64, reset_num_timesteps=False)
    pieces.set_env(pieces.env, force_reset=False)  # type: ignore[arg-type]  # there is one
    pieces.learn(64, reset_num_timesteps=False)
    assert type(pieces.rollout_buffer) is DeviceRolloutBuffer
    for name, tensor in eager.policy.state_dict().items():
        torch.testing.assert_close(whole.policy.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
        torch.testing.assert_close(pieces.policy.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_no_noise_is_used_twice_and_values_use_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actor, "DRAWS", 3)
    model = model_of("box", compile=True)
    model._setup_learn(64)
    observation: Any = model.policy.obs_to_tensor(model._last_obs)[0]  # type: ignore[arg-type]  # there is one

    def log_probs(*, values_between: bool) -> list[float]:
        torch.manual_seed(5)
        assert isinstance(model._engines.engine, CudaEngine)
        acting = model._engines.engine.actor(model._run())  # as at the start of a rollout
        seen = []
        for _ in range(7):
            seen += acting.act(observation).log_probs.tolist()
            if values_between:
                of_both = [*acting.terminal_values([observation[:1], observation[1:]])]
                torch.testing.assert_close(torch.stack(of_both), model.policy.predict_values(observation))
        return seen

    once = log_probs(values_between=False)
    assert len(set(once)) == 14
    assert log_probs(values_between=True) == once


class Refusing:
    """A device that records nothing."""

    def record(self, run: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
        raise CompileError("it cannot be recorded as a CUDA graph (out of graphs)")


def test_a_recording_that_fails_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.RECORDERS, "cpu", Refusing)
    with pytest.raises(ValueError, match=r"compile=True: it cannot be recorded .* \(out of graphs\); pass"):
        model_of("box", compile=True).learn(64)


def test_auto_goes_on_eagerly_where_recording_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.RECORDERS, "cpu", Refusing)
    monkeypatch.setitem(COSTS, "cpu", COST_NOTHING)
    eager, auto = model_of("box", compile=False).learn(64), model_of("box", compile="auto")
    with pytest.warns(CompileWarning, match=r'compile="auto": acting is not compiled: .*\(out of graphs\)') as warned:
        auto.learn(64)
    assert len(warned) == 1 and auto._engines.update_refused
    for name, tensor in eager.policy.state_dict().items():
        torch.testing.assert_close(auto.policy.state_dict()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_a_compiler_that_fails_is_a_reason_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("Failed to find C compiler. Please specify via CC\nmore")

    monkeypatch.setattr(torch._inductor, "compile", failing)
    monkeypatch.setattr(engine, "has_triton", lambda: True)
    with pytest.raises(ValueError, match=r"compile=True: .* \(RuntimeError: Failed to find C compiler.*\); pass"):
        model_of("box", compile=True).learn(64)


def test_what_a_compiler_warns_of_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def warning(traced: Any, tensors: list[Tensor], options: Any) -> Any:
        warnings.warn("Online softmax is disabled on the fly", UserWarning, stacklevel=1)
        return traced

    monkeypatch.setattr(torch._inductor, "compile", warning)
    monkeypatch.setattr(engine, "has_triton", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model_of("box", compile=True).learn(64)


def test_a_nan_stops_the_training() -> None:
    model = model_of("discrete", compile=True).learn(64)
    model.learning_rate = 1e30
    model._setup_lr_schedule()
    with pytest.raises(DivergedError):
        model.learn(640, reset_num_timesteps=False)


class Holding(BaseCallback):
    """Takes the buffer where callbacks do, and compares it with the one that is filled."""

    def _init_callback(self) -> None:
        self.held = [self.model.rollout_buffer]  # type: ignore[attr-defined]  # of an on-policy algorithm
        self.arrays = [type(self.held[0].observations)]

    def _on_training_start(self) -> None:
        self.held.append(self.model.rollout_buffer)  # type: ignore[attr-defined]

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.held.append(self.locals["rollout_buffer"])
        self.arrays.append(type(self.held[0].observations))
        assert self.held[0].full and self.held[0].returns.any()


def test_what_callbacks_hold_is_what_is_filled_wherever_it_is() -> None:
    model = model_of("box", compile=True)
    before = model.rollout_buffer
    # By graphs, eagerly, again by graphs in a second environment: "auto" decides so from one learn() to the next.
    for compile, kind in ((True, torch.Tensor), (False, np.ndarray), (True, torch.Tensor)):
        model.compile = compile
        callback = Holding()
        model.learn(64, callback, reset_num_timesteps=False)
        assert all(held is before is model.rollout_buffer for held in callback.held) and len(callback.held) == 3
        assert callback.arrays == [kind, kind]
        model.set_env(model_of("box").env)  # type: ignore[arg-type]  # it has one
    assert type(before) is DeviceRolloutBuffer


def writes(self: Any, x: Tensor) -> Any:
    self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
    return x - self.mean


def counts(self: Any, x: Tensor) -> Any:
    self.calls += 1
    return x


@pytest.mark.parametrize(("forward", "message"), [(writes, "writes to features_extractor.mean"), (counts, "calls")])
def test_a_recording_has_no_side_effects(forward: Any, message: str) -> None:
    kwargs = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"forward": forward}}
    with pytest.raises(ValueError, match=message):
        model_of("box", compile=True, policy_kwargs=kwargs).learn(64)
    auto = model_of("box", compile="auto", policy_kwargs=kwargs)
    auto._engines.compiles = True
    with pytest.warns(CompileWarning, match=message):
        auto.learn(64)
    theirs = model_of("box", compile=False, policy_kwargs=kwargs).learn(64).policy
    for name, tensor in auto.policy.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
    assert auto.policy.features_extractor.calls == theirs.features_extractor.calls
