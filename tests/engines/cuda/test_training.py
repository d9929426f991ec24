"""The engine of the GPU, rehearsed on the CPU: it collects and learns what eager training does, up to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sb3_ppo_ext.engines.cuda import engine
from sb3_ppo_ext.engines.cuda.compilers import inductor_combo_kernels
from sb3_ppo_ext.engines.cuda.engine import CudaEngine
from sb3_ppo_ext.engines.cuda.epochs import EpochRecordings
from sb3_ppo_ext.engines.cuda.update import RecordedRunner
from sb3_ppo_ext.rollout.device_buffers import DeviceRollouts
from sb3_ppo_ext.update.kl_probe import KLByPasses
from tests.cases import CASES, assert_same_learning, model_of
from tests.engines.cuda.rehearsal import Rehearsed, on_cpu, parameters_of  # noqa: F401  # a fixture

pytestmark = [
    pytest.mark.usefixtures("on_cpu"),
    pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning", "ignore:You have specified"),
]


@pytest.mark.parametrize("name", CASES)
def test_it_learns_what_eager_training_does(name: str) -> None:
    eager = model_of(name, compile=False).learn(128)
    device = model_of(name, compile=True).learn(128)
    assert isinstance(device.rollout_buffer, DeviceRollouts)
    assert isinstance(device._engines.engine, CudaEngine)
    assert not (device._engines.update_refused or device._engines.actor_refused)
    assert_same_learning(device, eager)


@pytest.mark.parametrize("name", ["gSDE", "everything", "last minibatch of one"])
def test_shards_learn_what_they_do_eagerly(name: str) -> None:
    settings: dict[str, Any] = {"shards": 2, "batch_size": CASES[name][3].get("batch_size", 16) // 2 * 2}
    eager = model_of(name, compile=False, **settings).learn(128)
    device = model_of(name, compile=True, **settings).learn(128)
    assert isinstance(device._engines.engine, CudaEngine) and not device._engines.actor_refused
    assert_same_learning(device, eager)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    small = {"policy_kwargs": {"net_arch": [8]}}  # a file of C++ for each layer, forward and backward
    eager = model_of("box", compile=False, **small).learn(128)
    monkeypatch.setattr(engine, "has_triton", lambda: True)  # on a CPU it is C++ that is compiled
    # Without vectors, whose instruction sets are tried out first; to compile the headers alone takes longer than this.
    with config.patch({"cpp.simdlen": 1, "cpp.vec_isa_ok": True, "cpp_cache_precompile_headers": False}):
        device = model_of("box", compile=True, **small).learn(128)
    assert isinstance(device._engines.engine, CudaEngine)
    assert device._engines.engine.recordings.compile is inductor_combo_kernels
    theirs = eager.policy.state_dict()
    for key, tensor in device.policy.state_dict().items():
        torch.testing.assert_close(tensor, theirs[key], rtol=1e-4, atol=1e-5, msg=key)


def test_images_lie_as_convolutions_read_them() -> None:
    model = model_of("image", compile=True).learn(64)
    engine_ = model._engines.engine
    assert isinstance(engine_, CudaEngine)
    (epochs,) = (made for made in engine_.recordings.known.values() if isinstance(made, EpochRecordings))
    images: Any = epochs.rows.observation
    assert images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def test_the_exact_kl_of_the_log_is_computed_before_anybody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noted(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any) -> Any:
            order.append(name)
            return original(*arguments)

        monkeypatch.setattr(owner, name, call)

    noted(KLByPasses, "compute")
    noted(RecordedRunner, "_read")
    model = model_of("box", compile=True).learn(64)
    assert order == ["compute", "_read"] and model.logger.name_to_value["train/kl_exact"] > 0
