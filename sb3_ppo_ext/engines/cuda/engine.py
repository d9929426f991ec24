"""What runs a model whose policy is on a GPU: made when it begins to learn, asked by ``Compilation``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.utils import obs_as_tensor
from torch.utils._triton import has_triton

from sb3_ppo_ext.engines.cpu.update import require_compilable
from sb3_ppo_ext.engines.cuda.actor import DeviceActor
from sb3_ppo_ext.engines.cuda.cuda_graphs import CudaGraphs, Recorder
from sb3_ppo_ext.engines.cuda.epochs import Finish, as_traced, combined, fused
from sb3_ppo_ext.engines.cuda.update import DeviceRecordings, DeviceUpdate
from sb3_ppo_ext.policies.adapter import unwrapped
from sb3_ppo_ext.rollout.device_buffers import ARRAYS, DeviceDictRolloutBuffer, DeviceRolloutBuffer
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Update

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX

ON_DEVICE: dict[type[RolloutBuffer], type[RolloutBuffer]] = {
    RolloutBuffer: DeviceRolloutBuffer,
    DictRolloutBuffer: DeviceDictRolloutBuffer,
}
RECORDERS: dict[str, Callable[[], Recorder]] = {"cuda": CudaGraphs}  # by type of device


class DeviceEngine:
    """Recordings of one model on one type of device."""

    def __init__(self, device_type: str) -> None:
        self.recordings = recordings_on(device_type, combined)

    def update(self, model: PPOX, rollout: Rollout, eager: Update) -> DeviceUpdate:
        """All epochs of ``train()``; ``CompileError`` with the reason where they cannot be recorded."""
        require_compilable(model.policy, rollout, model.policy.optimizer)
        update = DeviceUpdate(eager, self.recordings, model._rates.ratios(), rollout)
        update.prepare(rollout, model.batch_size)
        return update

    def actor(self, model: PPOX) -> DeviceActor:
        """Who acts in the next rollout."""
        observation = obs_as_tensor(model._last_obs, model.device)  # type: ignore[arg-type]  # there is one
        return DeviceActor(unwrapped(model.policy), self.recordings, observation)


def recordings_on(device_type: str, compiled: Finish = fused) -> DeviceRecordings:
    """None yet; what is recorded is ``compiled`` first, where there is Triton."""
    return DeviceRecordings(RECORDERS[device_type](), compiled if has_triton() else as_traced)


def exchange_buffer(model: PPOX, *, on_device: bool) -> None:
    """Stable-Baselines3's own rollout buffer moves to the model's device, or back, and is empty then.

    The object stays: a callback may hold it since before ``learn()``. One that the user named or changed does not move,
    and the name stays: saved files are for Stable-Baselines3 too, and for machines without such a device.
    """
    kinds = ON_DEVICE if on_device else {device: host for host, device in ON_DEVICE.items()}
    old: Any = model.rollout_buffer
    # A method among its attributes has been put there.
    if type(old) not in kinds or model._buffer_is_named or any(callable(value) for value in vars(old).values()):
        return
    for name in ARRAYS:
        vars(old).pop(name, None)
    old.__class__ = kinds[type(old)]
    old.reset()
