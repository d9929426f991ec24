"""Argument checks of distributions, operations over lists of tensors and compiled modules are as ``host`` assumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from sb3_ppo_ext.host.pytorch import tensor_lists
from sb3_ppo_ext.host.pytorch.distributions import check_arguments
from sb3_ppo_ext.host.pytorch.modules import without_compile


def test_argument_checks_are_switched_for_all_distributions() -> None:
    before = check_arguments(False)
    try:
        Normal(torch.tensor(torch.nan), torch.tensor(1.0))
        assert check_arguments(True) is False
        with pytest.raises(ValueError, match="loc"):
            Normal(torch.tensor(torch.nan), torch.tensor(1.0))
    finally:
        assert check_arguments(before) is True


def test_a_compiled_module_holds_the_module_it_wraps() -> None:
    module = nn.Linear(2, 2)
    assert without_compile(torch.compile(module)) is module and without_compile(module) is module  # type: ignore[arg-type]


OPERATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[list[Tensor], list[Tensor]], Any]]] = {
    "add": (lambda x, y: x.add_(0.3), lambda xs, ys: tensor_lists.add_(xs, 0.3)),
    "addcdiv": (
        lambda x, y: x.addcdiv_(x, y, value=-0.1),
        lambda xs, ys: tensor_lists.addcdiv_(xs, xs, ys, -0.1),
    ),
    "addcmul": (lambda x, y: x.addcmul_(y, y, value=0.1), lambda xs, ys: tensor_lists.addcmul_(xs, ys, ys, 0.1)),
    "copy": (lambda x, y: x.copy_(y), lambda xs, ys: tensor_lists.copy_(xs, ys)),
    "div": (lambda x, y: x.div_(0.7), lambda xs, ys: tensor_lists.div_(xs, 0.7)),
    "lerp": (lambda x, y: x.lerp_(y, 0.1), lambda xs, ys: tensor_lists.lerp_(xs, ys, 0.1)),
    "mul": (lambda x, y: x.mul_(0.7), lambda xs, ys: tensor_lists.mul_(xs, 0.7)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_over_a_list_has_the_bits_of_the_method(name: str) -> None:
    method, over_list = OPERATIONS[name]
    shapes = [(64,), (3, 5), (), (257, 33)]
    firsts, seconds = ([torch.rand(shape) for shape in shapes] for _ in range(2))
    expected = [first.clone() for first in firsts]
    for first, second in zip(expected, seconds, strict=True):
        method(first, second)
    over_list(firsts, seconds)
    assert all(map(torch.equal, firsts, expected))


def test_norms_of_a_list_are_those_of_its_tensors() -> None:
    tensors = [torch.rand(3000), torch.rand(7, 5)]
    norms = tensor_lists.norm(tensors, 2.0)
    assert all(torch.equal(norm, torch.linalg.vector_norm(tensor)) for norm, tensor in zip(norms, tensors, strict=True))
    halves = [tensor.bfloat16() for tensor in tensors]
    in_full = tensor_lists.norm(halves, 2.0, torch.float32)
    for norm, half in zip(in_full, halves, strict=True):
        torch.testing.assert_close(norm, half.float().norm(), rtol=1e-6, atol=0)
