"""The sums of a gradient over processes: begun while it is computed, in one order, and not of half a gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sb3_ppo_ext.distributed import gradient_sums
from sb3_ppo_ext.distributed.gradient_sums import GradientSums
from sb3_ppo_ext.distributed.processes import OneProcess


class Twins(OneProcess):
    """A process and another with the same numbers; notes when sums begin and end."""

    count = 2

    def __init__(self) -> None:
        self.events: list[str] = []

    def add(self, tensor: Tensor) -> None:
        self.begin_add(tensor)()

    def begin_add(self, tensor: Tensor) -> Callable[[], None]:
        name = f"sum of {tensor.numel()}"
        self.events.append(name)
        begun = tensor.clone()

        def wait() -> None:
            torch.testing.assert_close(tensor, begun, rtol=0, atol=0, equal_nan=True)  # nothing has touched it
            tensor.mul_(2)
            self.events.append(f"end of {name}")

        return wait


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> nn.Sequential:
    """Three layers of 6 parameters, each a bucket of its own."""
    monkeypatch.setattr(gradient_sums, "BUCKET", 4 * 6)
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))


def loss_of(network: nn.Sequential) -> Tensor:
    result: Tensor = network(torch.tensor([[1.0, -2.0]]))
    return result.square().sum()


def gradient_of(network: nn.Sequential) -> list[Tensor]:
    network.zero_grad()
    loss_of(network).backward()
    return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


def test_sums_begin_before_the_gradient_is_complete(network: nn.Sequential) -> None:
    expected, twins = gradient_of(network), Twins()
    network.zero_grad()
    first = network[0].get_parameter("weight")
    first.register_post_accumulate_grad_hook(lambda _: twins.events.append("first layer"))
    sums = GradientSums(network.parameters(), 0.5, twins)
    with sums.begun_early():
        loss_of(network).backward()
    assert twins.events.index("sum of 6") < twins.events.index("first layer")
    found = sums.finish(torch.tensor([3.0]))
    # The last bucket: the first layer, whether each of the 6 parameters has a gradient, and a statistic.
    assert [event for event in twins.events if event.startswith("sum")] == ["sum of 6", "sum of 6", "sum of 13"]
    assert found is not None and found.tolist() == [3.0]  # half of each of two
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert parameter.grad is not None and parameter.grad.equal(gradient)


def test_micro_batches_before_the_last_one_count(network: nn.Sequential) -> None:
    expected = gradient_of(network)
    sums = GradientSums(network.parameters(), 0.5, Twins())
    with sums.begun_early():  # gradients of a first micro-batch are there
        loss_of(network).backward()
    sums.finish()
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient, rtol=1e-6, atol=0)


def test_what_the_last_pass_leaves_out_is_added_at_the_end(network: nn.Sequential) -> None:
    twins = Twins()
    sums = GradientSums(network.parameters(), 0.5, twins)
    with sums.begun_early():
        network[2](torch.ones(1, 2)).sum().backward()
        begun = list(twins.events)
    assert begun == ["sum of 6"]
    sums.finish()
    assert all(parameter.grad is None for layer in (0, 1) for parameter in network[layer].parameters())
    assert network[2].get_parameter("bias").grad.tolist() == [1.0, 1.0]  # type: ignore[union-attr]


def test_a_second_pass_after_the_sum_began_is_refused(network: nn.Sequential) -> None:
    with GradientSums(network.parameters(), 0.5, Twins()).begun_early():
        loss_of(network).backward()
        with pytest.raises(RuntimeError, match="changed after its sum"):
            loss_of(network).backward()
