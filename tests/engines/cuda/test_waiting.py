"""On tensors of another device that hold no numbers: whatever waits for the device, or leaves it, fails here.

Among fake tensors "meta" is a device like any other: tensors of two devices do not mix, and no number can be read.
(A fake "cuda" needs a torch that was built with it.)

What this cannot show is the driver's own recording of a graph: see test_cuda.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from sb3_ppo_ext.distributed.processes import ALONE, OneProcess
from sb3_ppo_ext.engines.cpu.actor import acting_inputs
from sb3_ppo_ext.engines.cuda.actor import RecordedForward
from sb3_ppo_ext.engines.cuda.compilers import uncompiled
from sb3_ppo_ext.engines.cuda.controllers import DeviceControllers
from sb3_ppo_ext.engines.cuda.epochs import EpochRecordings
from sb3_ppo_ext.engines.cuda.update import CudaGraphCache
from sb3_ppo_ext.engines.traced_update import UpdateFunctions
from sb3_ppo_ext.engines.tracing import tensors_of
from sb3_ppo_ext.engines.update_inputs import UpdateInputs
from sb3_ppo_ext.policies.adapter import unvalidated_distributions
from sb3_ppo_ext.rollout.device_buffers import DeviceRolloutBuffer
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.prepare import row_update
from sb3_ppo_ext.update.step import COLUMNS
from tests.cases import CASES, model_of
from tests.engines.other_device import ELSEWHERE, elsewhere

pytestmark = pytest.mark.filterwarnings("ignore:You have specified")


seen: list[fx.GraphModule] = []


class Plainly:
    """Records nothing: every replay runs the function."""

    def record(self, run: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
        return run


def noted(traced: Any, tensors: list[Tensor]) -> Any:
    seen.append(traced)
    return uncompiled(traced, tensors)


def assert_stays_elsewhere(traced: fx.GraphModule) -> None:
    for node in traced.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and value.dim() > 0:
            assert value.device.type == ELSEWHERE, node.format_node()


class Twins(OneProcess):
    """Two processes of which the other has the same rows."""

    count = 2

    def add(self, tensor: Tensor) -> None:
        tensor.mul_(2)


@pytest.mark.parametrize(
    ("name", "processes"), [*((name, ALONE) for name in CASES), ("box", Twins()), ("everything", Twins())]
)
def test_an_epoch_never_waits_for_the_gpu(name: str, processes: OneProcess) -> None:
    seen.clear()
    model = model_of(name, compile=False)
    rollout = Rollout(model.rollout_buffer, model.action_space, normalize_advantage=False)
    model.policy.set_training_mode(True)
    with unvalidated_distributions():
        run = replace(model._run(), processes=processes)
        update = row_update(run, rollout)
        prepared = UpdateInputs(run, update)
        functions = UpdateFunctions(model.policy, update.adapter, prepared.plan)
        with FakeTensorMode():
            inputs, rows = elsewhere(prepared.inputs), elsewhere(rollout.rows)
            controllers = DeviceControllers(run.knobs, torch.device(ELSEWHERE))
            epochs = EpochRecordings(functions, inputs, controllers, rows, noted, run)
            epochs.load(inputs, rows)
            epochs.prepare(model.batch_size, Plainly())
            table, counts = epochs.epoch(torch.randperm(rollout.size, device=ELSEWHERE), model.batch_size)
    assert table.shape == (-(-rollout.size // model.batch_size), len(COLUMNS)) and counts.shape == table.shape[:1]
    assert table.device.type == counts.device.type == ELSEWHERE
    assert seen
    for traced in seen:
        assert_stays_elsewhere(traced)


@pytest.mark.parametrize("name", ["box", "discrete", "multidiscrete", "multibinary", "dict", "gSDE", "image"])
def test_acting_never_waits_for_the_gpu(name: str) -> None:
    model = model_of(name, compile=False)
    model.policy.set_training_mode(False)
    if model.use_sde:
        model.policy.reset_noise(2)
    observation, _ = model.policy.obs_to_tensor(model.env.reset())  # type: ignore[union-attr,arg-type]  # there is one
    inputs = acting_inputs(model.policy, observation)
    with FakeTensorMode(), torch.no_grad():
        fake = elsewhere(inputs)
        forward = RecordedForward(model.policy, fake, CudaGraphCache(Plainly(), noted), 3)
        forward.discard_noise()
        forward.require_noise()
        packed = forward(tensors_of({key: fake[key] for key in ("exploration", "observation")}))
        forward.rewind_noise()
        results = forward.outputs.unpacked(packed)
    assert all(result.device.type == ELSEWHERE for result in results)
    assert [len(result) for result in results] == [2, 2, 2]
    assert_stays_elsewhere(seen.pop())


def test_a_rollout_stays_on_the_gpu() -> None:
    model = model_of("box", compile=False)
    with FakeTensorMode():
        buffer = DeviceRolloutBuffer(4, model.observation_space, model.action_space, ELSEWHERE, n_envs=2)
        step = elsewhere({"obs": torch.zeros(2, 4), "action": torch.zeros(2, 2), "value": torch.zeros(2, 1)})
        for _ in range(4):
            buffer.add(step["obs"], step["action"], 0.0, 0.0, step["value"], step["value"][:, 0])
        assert buffer.full and buffer.observations.device.type == ELSEWHERE
        assert buffer.values.device.type == buffer.actions.device.type == ELSEWHERE
