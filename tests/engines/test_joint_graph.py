"""A function and its gradient, taken apart: each graph alone computes what both did, for batches of any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.joint_graph import halves_of
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of, trace

ROWS_MAY_VARY = ((0, 0), (2, 0))  # of the states and of the direction


def squares(inputs: Inputs) -> tuple[Tensor, ...]:
    """(x w)^2 and its gradients along a direction."""
    states, weight = (inputs[name].detach().requires_grad_() for name in ("states", "weight"))
    with torch.enable_grad():
        result = (states @ weight).square()
        gradients = torch.autograd.grad(result, (states, weight), inputs["direction"])
    return (result.detach(), *gradients)


def inputs_of(rows: int) -> Inputs:
    states, weight = torch.arange(3.0 * rows).view(rows, 3), torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    return {"states": states, "weight": weight, "direction": torch.tensor([[1.0, 10.0]]).repeat(rows, 1)}


def test_both_halves_are_the_whole_for_any_number_of_rows() -> None:
    joint = trace(squares, inputs_of(2), nn.Module(), varying=ROWS_MAY_VARY)
    forward, backward = halves_of(joint, tensors_of(inputs_of(2)), ROWS_MAY_VARY)
    for rows in (2, 5, 1):
        *inputs, direction = tensors_of(inputs_of(rows))
        result, *kept = forward.graph(*inputs)
        # Of a row (0, 1, 2), x w is (-2, 4).
        assert result[0].tolist() == [4.0, 16.0]
        assert [tensor.shape for tensor in kept] == [(rows, 2)], "the product alone, not its square"
        of_states, of_weight = backward.graph(*inputs, *kept, direction)
        # 2 (x w) times the direction is (-4, 80); times w transposed (-4, 160, 84).
        assert of_states[0].tolist() == [-4.0, 160.0, 84.0]
        if rows == 1:
            assert of_weight.tolist() == [[0.0, 0.0], [-4.0, 80.0], [-8.0, 160.0]]
        whole = squares(inputs_of(rows))
        torch.testing.assert_close((result, of_states, of_weight), whole, rtol=0, atol=0)


def test_the_inputs_of_both_halves_say_which_sizes_may_vary() -> None:
    joint = trace(squares, inputs_of(2), nn.Module(), varying=ROWS_MAY_VARY)
    forward, backward = halves_of(joint, tensors_of(inputs_of(2)), ROWS_MAY_VARY)
    assert [tuple(tensor.shape) for tensor in forward.inputs] == [(2, 3), (3, 2)]
    assert [tuple(tensor.shape) for tensor in backward.inputs] == [(2, 3), (3, 2), (2, 2), (2, 2)]
    assert (forward.varying, backward.varying) == (((0, 0),), ((0, 0), (2, 0), (3, 0)))


def test_what_writes_in_place_is_refused() -> None:
    def writing(inputs: Inputs) -> tuple[Tensor, ...]:
        states = inputs["states"] * 2
        states.add_(1)
        return states, inputs["direction"]

    joint = trace(writing, inputs_of(2), nn.Module())
    with pytest.raises(CompileError, match="add_ writes to a tensor in place"):
        halves_of(joint, tensors_of(inputs_of(2)), ())
