"""The engine of the GPU, rehearsed on the CPU: it collects and learns what eager training does, up to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX, AdaptiveClipFraction, AdaptiveKL, Proportional, Threshold
from sb3_ppo_ext.engines.cuda import engine
from sb3_ppo_ext.engines.cuda.engine import CudaEngine
from sb3_ppo_ext.engines.cuda.epochs import EpochRecordings, combined
from sb3_ppo_ext.engines.cuda.update import RecordedRunner
from sb3_ppo_ext.rollout.device_buffers import DeviceRollouts
from sb3_ppo_ext.update.kl_probe import KLByPasses
from tests import test_parity
from tests.engines import test_compiled
from tests.engines.cuda.rehearsal import Rehearsed, on_cpu, parameters_of  # noqa: F401  # a fixture
from tests.engines.test_compiled import compiler  # noqa: F401  # a fixture
from tests.test_parity import environments
from tests.update.test_group_rates import TwoRates

pytestmark = [
    pytest.mark.usefixtures("on_cpu"),
    pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning", "ignore:You have specified"),
]

CASES = {
    **test_parity.CASES,
    **test_compiled.CASES,
    "controllers of the epoch": (
        "vector",
        "discrete",
        "MlpPolicy",
        {
            "learning_rate": AdaptiveKL(1e-3, 1e-4, every="epoch"),
            "clip_range": AdaptiveClipFraction(0.2, 0.01, Proportional(500), every="epoch"),
            "kl_estimator": "k1",
        },
    ),
    "stopped early, two moments": (
        "vector",
        "box",
        TwoRates,
        {
            "learning_rate": AdaptiveKL(3e-3, 1e-3, Threshold(2.0, 1.5), every="minibatch"),
            "kl_coef": AdaptiveKL(0.1, 1e-3, every="epoch"),
            "target_kl": 2e-3,
            "n_epochs": 6,
        },
    ),
}


def model_of(name: str, **more: Any) -> PPOX:
    observation, action, policy, options = CASES[name]
    settings = {"n_steps": 32, "batch_size": 16, "n_epochs": 3, "seed": 3, "device": "cpu", **options, **more}
    return PPOX(policy, environments(observation, action), **settings)


@pytest.mark.parametrize("name", CASES)
def test_it_learns_what_eager_training_does(name: str) -> None:
    eager = model_of(name, compile=False).learn(128)
    device = model_of(name, compile=True).learn(128)
    assert isinstance(device.rollout_buffer, DeviceRollouts)
    assert isinstance(device._engines.engine, CudaEngine)
    assert not (device._engines.update_refused or device._engines.actor_refused)
    assert device._n_updates == eager._n_updates
    assert device.knobs.numbers() == pytest.approx(eager.knobs.numbers(), rel=1e-3)
    theirs = parameters_of(eager.policy)
    for key, tensor in device.policy.state_dict().items():
        scale = max(theirs[key].abs().max().item(), 1e-3)
        assert (tensor - theirs[key]).abs().max().item() <= 2e-4 * scale, key
    records = device.logger.name_to_value
    for key, value in eager.logger.name_to_value.items():
        if key.startswith(("train/", "rollout/")):
            np.testing.assert_allclose(records[key], value, rtol=5e-3, atol=1e-4, err_msg=key)
    steps = [[state["step"].item() for state in model.policy.optimizer.state.values()] for model in (eager, device)]
    assert steps[0] == steps[1]


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    eager = model_of("box", compile=False).learn(128)
    monkeypatch.setattr(engine, "has_triton", lambda: True)  # on a CPU it is C++ that is compiled
    device = model_of("box", compile=True).learn(128)
    assert isinstance(device._engines.engine, CudaEngine) and device._engines.engine.recordings.finish is combined
    theirs = eager.policy.state_dict()
    for key, tensor in device.policy.state_dict().items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-4, atol=1e-5, msg=key)


def test_images_lie_as_convolutions_read_them() -> None:
    model = model_of("image", compile=True).learn(64)
    engine_ = model._engines.engine
    assert isinstance(engine_, CudaEngine)
    (epochs,) = (one for one in engine_.recordings.known.values() if isinstance(one, EpochRecordings))
    images: Any = epochs.rows.observation
    assert images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def test_the_exact_kl_of_the_log_is_computed_before_anybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(*given: Any) -> Any:
            order.append(name)
            return original(*given)

        monkeypatch.setattr(owner, name, call)

    noted(KLByPasses, "compute")
    noted(RecordedRunner, "_read")
    model = model_of("box", compile=True).learn(64)
    assert order == ["compute", "_read"] and model.logger.name_to_value["train/kl_exact"] > 0
