"""The engine of the GPU on the CPU: everything of it but the recording of a graph by the driver."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from sb3_ppo_ext.engines.cuda import actor, engine
from sb3_ppo_ext.rollout.device_minibatches import DeviceRollout
from sb3_ppo_ext.rollout.minibatches import Rollout


class Rehearsed:
    """Runs twice before it hands the function back, as CudaGraphs does: where a tensor is missing in ``changed``, the
    first epoch trains thrice.
    """

    recorded = 0

    def record(self, run: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
        Rehearsed.recorded += 1
        before = [tensor.clone() for tensor in changed]
        for _ in range(2):
            run()
        for tensor, old in zip(changed, before, strict=True):
            tensor.copy_(old)
        return run


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models on the CPU are trained by the device's engine, or eagerly, in one fixed order of rows.

    The device draws the orders of all epochs, also of those that an early stop leaves out; and the noise of many
    steps at once, where on a CPU the numbers are others than those of one after the other.
    """
    monkeypatch.setitem(engine.RECORDERS, "cpu", Rehearsed)
    monkeypatch.setattr(actor, "DRAWS", 1)

    def orders(self: Rollout, batch_size: int) -> tuple[Tensor, ...]:
        return torch.split(torch.from_numpy(np.random.RandomState(7).permutation(self.size)), batch_size)

    monkeypatch.setattr(Rollout, "orders", orders)
    monkeypatch.setattr(DeviceRollout, "orders", orders)


def parameters_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
