"""On a GPU: recorded CUDA graphs learn what eager training on that GPU does."""

from __future__ import annotations

import pytest
import torch

from sb3_ppo_ext.device.rollout import DeviceRollout
from sb3_ppo_ext.minibatches import Rollout
from tests.device.test_training import CASES, model_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore::sb3_ppo_ext.diagnostics.TrainingWarning", "ignore:You have specified"),
]


@pytest.fixture(autouse=True)
def one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same order of rows in every epoch, whoever draws it."""

    def orders(self: Rollout, batch_size: int) -> tuple[torch.Tensor, ...]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(7))
        return torch.split(order.to(self.buffer.device), batch_size)

    for kind in (Rollout, DeviceRollout):
        monkeypatch.setattr(kind, "orders", orders)


@pytest.mark.parametrize("name", CASES)
def test_graphs_learn_what_eager_training_does(name: str) -> None:
    eager = model_of(name, device="cuda", compile=False).learn(64)
    graphs = model_of(name, device="cuda", compile=True)
    graphs._compilation.actor_refused = True  # acting draws its noise in another way
    graphs.learn(64)
    assert graphs._compilation.engine is not None and not graphs._compilation.update_refused
    assert graphs._n_updates == eager._n_updates
    theirs = eager.policy.state_dict()
    for key, tensor in graphs.policy.state_dict().items():
        scale = max(theirs[key].abs().max().item(), 1e-3)
        assert (tensor - theirs[key]).abs().max().item() <= 1e-3 * scale, key


@pytest.mark.parametrize("name", CASES)
def test_acting_by_a_graph(name: str) -> None:
    model = model_of(name, device="cuda", compile=True).learn(128)
    assert not model._compilation.actor_refused
    buffer = model.rollout_buffer
    assert isinstance(buffer.values, torch.Tensor) and buffer.values.is_cuda
    rows = DeviceRollout(buffer, model.action_space, normalize_advantage=False).rows
    assert rows.action_log_prob.isfinite().all() and rows.action.float().std() > 0
