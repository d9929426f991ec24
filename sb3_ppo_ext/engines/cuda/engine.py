"""Acting and the update as CUDA graphs, and where rollouts are stored for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor

from sb3_ppo_ext.engines.cpu.update import require_compilable
from sb3_ppo_ext.engines.cuda.actor import DeviceActor
from sb3_ppo_ext.engines.cuda.compilers import Compile, inductor, inductor_combo_kernels, uncompiled
from sb3_ppo_ext.engines.cuda.cuda_graphs import CudaGraphs, Recorder
from sb3_ppo_ext.engines.cuda.update import CudaGraphCache, RecordedRunner
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
    """The recordings of one model on one type of device."""

    def __init__(self, device_type: str) -> None:
        self.recordings = cuda_graph_cache(device_type, inductor_combo_kernels)

    def prepare(self, run: Run, actor: MakeActor, runner: MakeRunner) -> None:
        """Does nothing: the first rollout records acting, and the first update records itself."""

    def actor(self, run: Run) -> DeviceActor:
        """An actor for the next rollout."""
        observation = obs_as_tensor(run.last_observation, run.device)
        by_shards = run.shards is not None
        return DeviceActor(unwrapped(run.policy), self.recordings, observation, by_shards=by_shards)

    def runner(self, run: Run, rollout: Rollout, update: Update) -> RecordedRunner:
        """A runner for the epochs of an update."""
        require_compilable(run.policy, rollout, update.optimizer)
        return RecordedRunner(run, rollout, update, self.recordings)


def cuda_graph_cache(device_type: str, compile: Compile = inductor) -> CudaGraphCache:
    """An empty cache; where there is Triton, ``compile`` is applied to what is recorded."""
    return CudaGraphCache(RECORDERS[device_type](), compile if has_triton() else uncompiled)


def exchange_buffer(buffer: Any, *, on_device: bool) -> None:
    """Moves Stable-Baselines3's own rollout buffer to the model's device, or back, and empties it.

    The object stays the same, because a callback may hold it since before ``learn()``. A buffer that the user changed
    does not move: saved files are for Stable-Baselines3 too, and for machines without such a device.
    """
    kinds = ON_DEVICE if on_device else {device: host for host, device in ON_DEVICE.items()}
    # A method among its attributes has been put there by the user.
    if type(buffer) not in kinds or any(callable(value) for value in vars(buffer).values()):
        return
    for name in ARRAYS:
        vars(buffer).pop(name, None)
    buffer.__class__ = kinds[type(buffer)]
    buffer.reset()
