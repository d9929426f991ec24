"""A fused Adam that clips in its kernel steps as if the gradients had been clipped before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sb3_ppo_ext.update.optimizer_step import FusedAdamStep, steps_in_one_kernel

SHAPES = [(64, 4), (64,), (2, 64), (), (63,), (300, 128), (7, 5)]


def network(optimizer: Any, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return parameters, optimizer(parameters, **options)


def gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:  # norms from far above max_norm to far below
        parameter.grad = 10.0 ** -(seed % 4) * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_a_kernel_that_clips_steps_as_if_it_had_been_done_before(optimizer: Any) -> None:
    ours, theirs = network(optimizer, fused=True), network(optimizer, fused=True)
    step = FusedAdamStep(ours[1], ours[0])
    for seed in range(8):  # norms above and below the greatest
        gradients(ours[0], seed)
        norm = step.clip(0.5)
        step.step()
        gradients(theirs[0], seed)
        expected = nn.utils.clip_grad_norm_(theirs[0], 0.5)
        theirs[1].step()
        torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
        for parameter, other in zip(ours[0], theirs[0], strict=True):
            torch.testing.assert_close(parameter, other, rtol=1e-6, atol=1e-7)
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7)
    assert not hasattr(ours[1], "grad_scale")


def test_a_kernel_clips_half_precision_by_a_norm_in_full() -> None:
    parameters = [nn.Parameter(torch.zeros(3000, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(2))]
    parameters[0].grad, parameters[1].grad = torch.full((3000,), 0.1, dtype=torch.bfloat16), torch.tensor([3.0, 4.0])
    step = FusedAdamStep(torch.optim.Adam(parameters, lr=1e-3, fused=True), parameters)
    norm = step.clip(1.0)
    # 0.1 in bfloat16 is 0.10009765625: the root of 3000 * 0.01001954 + 25.
    assert norm.item() == pytest.approx((3000 * 0.10009765625**2 + 25) ** 0.5, rel=1e-5)
    step.step()
    assert parameters[1].grad.norm() < 1 and parameters[1].grad[0].item() == pytest.approx(3 / norm.item(), rel=1e-5)


def test_a_hook_that_reads_clipped_gradients_finds_them() -> None:
    _, optimizer = network(torch.optim.Adam, fused=True)
    assert steps_in_one_kernel(optimizer) and not steps_in_one_kernel(network(torch.optim.SGD, lr=0.1)[1])
    optimizer.register_step_pre_hook(lambda *_: None)
    assert not steps_in_one_kernel(optimizer)
    assert not steps_in_one_kernel(network(torch.optim.Adam)[1])
