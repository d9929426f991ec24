"""What runs a model whose policy is on a GPU: made when it begins to learn, asked by ``Compilation``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gymnasium import spaces
from stable_baselines3.common.utils import obs_as_tensor
from torch.utils._triton import has_triton

from sb3_ppo_ext.compiled_update import require_compilable
from sb3_ppo_ext.device.actor import DeviceActor
from sb3_ppo_ext.device.buffers import DeviceDictRolloutBuffer, DeviceRolloutBuffer
from sb3_ppo_ext.device.capture import CudaGraphs, Recorder
from sb3_ppo_ext.device.epochs import as_traced, fused
from sb3_ppo_ext.device.update import DeviceRecordings, DeviceUpdate
from sb3_ppo_ext.minibatches import Rollout
from sb3_ppo_ext.policies import unwrapped
from sb3_ppo_ext.update import Update

if TYPE_CHECKING:
    from sb3_ppo_ext.ppox import PPOX

RECORDERS: dict[str, Callable[[], Recorder]] = {"cuda": CudaGraphs}  # by type of device


class DeviceEngine:
    """Recordings of one model on one type of device; what is recorded is compiled first, where there is Triton."""

    def __init__(self, device_type: str) -> None:
        self.recordings = DeviceRecordings(RECORDERS[device_type](), fused if has_triton() else as_traced)

    def update(self, model: PPOX, rollout: Rollout, eager: Update) -> DeviceUpdate:
        """All epochs of ``train()``; ``CompileError`` with the reason where they cannot be recorded."""
        require_compilable(model.policy, rollout, model.policy.optimizer)
        update = DeviceUpdate(eager, self.recordings, model._rates.ratios, rollout)
        update.prepare(rollout, model.batch_size)
        return update

    def actor(self, model: PPOX) -> DeviceActor:
        """Who acts in the next rollout."""
        observation = obs_as_tensor(model._last_obs, model.device)  # type: ignore[arg-type]  # there is one
        return DeviceActor(unwrapped(model.policy), self.recordings, observation)


@contextmanager
def rollouts_on_device(model: PPOX) -> Iterator[None]:
    """A model that names no rollout buffer builds one on its device in this block, where that has recordings.

    The name is not kept: saved files are for Stable-Baselines3 too, and for machines without such a device.
    """
    named = model.rollout_buffer_class
    if named is not None or model.compile is not True or model.device.type not in RECORDERS:
        yield
        return
    is_dict = isinstance(model.observation_space, spaces.Dict)
    model.rollout_buffer_class = DeviceDictRolloutBuffer if is_dict else DeviceRolloutBuffer
    try:
        yield
    finally:
        model.rollout_buffer_class = None
