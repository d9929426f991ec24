"""What runs a model whose policy is on a GPU: made when it begins to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor

from sb3_ppo_ext.engines.cpu.update import require_compilable
from sb3_ppo_ext.engines.cuda.actor import DeviceActor
from sb3_ppo_ext.engines.cuda.cuda_graphs import CudaGraphs, Recorder
from sb3_ppo_ext.engines.cuda.epochs import Finish, as_traced, combined, fused
from sb3_ppo_ext.engines.cuda.update import DeviceRecordings, RecordedRunner
from sb3_ppo_ext.engines.engine import MakeActor, MakeRunner
from sb3_ppo_ext.host.pytorch.compilers import has_triton
from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext.rollout.device_buffers import ARRAYS, DeviceDictRolloutBuffer, DeviceRolloutBuffer
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update

ON_DEVICE: dict[type[RolloutBuffer], type[RolloutBuffer]] = {
    RolloutBuffer: DeviceRolloutBuffer,
    DictRolloutBuffer: DeviceDictRolloutBuffer,
}
RECORDERS: dict[str, Callable[[], Recorder]] = {"cuda": CudaGraphs}  # by type of device


class CudaEngine:
    """Recordings of one model on one type of device."""

    def __init__(self, device_type: str) -> None:
        self.recordings = recordings_on(device_type, combined)

    def prepare(self, run: Run, actor: MakeActor, runner: MakeRunner) -> None:
        """Nothing: the first rollout records acting, the first update itself."""

    def actor(self, run: Run) -> DeviceActor:
        """See ``Engine``."""
        observation = obs_as_tensor(run.last_observation, run.device)
        return DeviceActor(unwrapped(run.policy), self.recordings, observation)

    def runner(self, run: Run, rollout: Rollout, update: Update) -> RecordedRunner:
        """See ``Engine``."""
        require_compilable(run.policy, rollout, update.optimizer)
        return RecordedRunner(run, rollout, update, self.recordings)


def recordings_on(device_type: str, compiled: Finish = fused) -> DeviceRecordings:
    """None yet; what is recorded is ``compiled`` first, where there is Triton."""
    return DeviceRecordings(RECORDERS[device_type](), compiled if has_triton() else as_traced)


def exchange_buffer(buffer: Any, *, on_device: bool) -> None:
    """Stable-Baselines3's own rollout buffer moves to the model's device, or back, and is empty then.

    The object stays: a callback may hold it since before ``learn()``. One that the user changed does not move: saved
    files are for Stable-Baselines3 too, and for machines without such a device.
    """
    kinds = ON_DEVICE if on_device else {device: host for host, device in ON_DEVICE.items()}
    # A method among its attributes has been put there.
    if type(buffer) not in kinds or any(callable(value) for value in vars(buffer).values()):
        return
    for name in ARRAYS:
        vars(buffer).pop(name, None)
    buffer.__class__ = kinds[type(buffer)]
    buffer.reset()
