"""Steps over merged tensors are torch's own steps, bit for bit, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sb3_ppo_ext.update.merged_adam import MergedAdamStep, merged_steps
from sb3_ppo_ext.update.optimizer_step import TorchStep
from sb3_ppo_ext.update.optimizers import prefer_foreach

# Whole vectors, tails, scalars, and a tensor above the share of one thread.
SHAPES = [(64, 4), (64,), (2, 64), (2,), (1,), (), (63,), (65,), (128, 64), (300, 128), (64, 64), (7, 5)]


def network(optimizer: Callable[..., torch.optim.Optimizer], **options: Any) -> Any:
    generator = torch.Generator().manual_seed(1)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    return parameters, optimizer(parameters, **options)


def gradients(parameters: list[nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        scale = 10.0 ** -(seed % 4)  # from norms far above max_norm to far below
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def torch_steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, seeds: range) -> list[torch.Tensor]:
    norms = []
    for seed in seeds:
        gradients(parameters, seed)
        norms.append(nn.utils.clip_grad_norm_(parameters, 0.5))
        optimizer.step()
    return norms


def steps_of_ours(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, seeds: range) -> list[torch.Tensor]:
    norms = []
    with merged_steps(optimizer, parameters) as step:
        assert isinstance(step, MergedAdamStep)
        for seed in seeds:
            gradients(parameters, seed)
            norms.append(step.clip(0.5))
            step.step()
    return norms


def assert_same(mine: Any, theirs: Any) -> None:
    for parameter, other in zip(mine[0], theirs[0], strict=True):
        assert torch.equal(parameter, other) and torch.equal(parameter.grad, other.grad)
        for name in ("exp_avg", "exp_avg_sq", "step"):
            assert torch.equal(mine[1].state[parameter][name], theirs[1].state[other][name])


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (torch.optim.Adam, {"lr": 3e-4, "eps": 1e-5}),
        (torch.optim.Adam, {"lr": 0.1, "betas": (0.5, 0.9)}),
        (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.1}),
        (torch.optim.AdamW, {"lr": 0.0}),
    ],
)
def test_merged_steps_are_torch_s(optimizer: Any, options: dict[str, Any]) -> None:
    ours, theirs = network(optimizer, **options), network(optimizer, **options)
    for each in (ours, theirs):
        torch_steps(each[0], each[1], range(1))
    prefer_foreach(ours[1])
    for seeds in (range(1, 9), range(9, 17)):  # two epochs: state goes out and in again
        ours[1].param_groups[0]["lr"] = theirs[1].param_groups[0]["lr"] = options["lr"] / seeds[0]
        norms = steps_of_ours(ours[0], ours[1], seeds)
        assert torch.equal(torch.stack(norms), torch.stack(torch_steps(theirs[0], theirs[1], seeds)))
        assert_same(ours, theirs)


def ready(optimizer: Any = torch.optim.Adam, **options: Any) -> Any:
    parameters, built = network(optimizer, **options)
    torch_steps(parameters, built, range(1))
    prefer_foreach(built)
    return parameters, built


def test_a_gradient_that_is_missing_from_some_minibatch_is_left_to_the_optimizer() -> None:
    ours, theirs = ready(), ready()
    norms: list[torch.Tensor] = []
    with merged_steps(ours[1], ours[0]) as step:
        for seed in range(1, 7):
            for parameters, _ in (ours, theirs):
                gradients(parameters, seed)
                parameters[3].grad = None if seed in (3, 4) else parameters[3].grad
            norms.append(step.clip(0.5))
            step.step()
            assert torch.equal(norms[-1], nn.utils.clip_grad_norm_(theirs[0], 0.5))
            theirs[1].step()
    assert_same(ours, theirs)


def test_an_error_between_steps_leaves_the_optimizer_where_it_was() -> None:
    ours, theirs = ready(), ready()
    with pytest.raises(KeyboardInterrupt), merged_steps(ours[1], ours[0]) as step:
        for seed in range(1, 4):
            gradients(ours[0], seed)
            step.clip(0.5)
            if seed == 3:
                raise KeyboardInterrupt
            step.step()
    torch_steps(theirs[0], theirs[1], range(1, 3))
    gradients(theirs[0], 3)
    nn.utils.clip_grad_norm_(theirs[0], 0.5)
    assert_same(ours, theirs)


def hooked() -> Any:
    parameters, optimizer = ready()
    optimizer.register_step_post_hook(lambda *_: None)
    return parameters, optimizer


def patched() -> Any:
    parameters, optimizer = ready()
    torch.optim.lr_scheduler.ConstantLR(optimizer)  # counts the calls of step
    return parameters, optimizer


def uneven() -> Any:
    parameters, optimizer = ready()
    optimizer.state[parameters[0]]["step"] += 1
    return parameters, optimizer


def grouped() -> Any:
    parameters, _ = network(torch.optim.Adam)
    optimizer = torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:], "lr": 1.0}])
    torch_steps(parameters, optimizer, range(1))
    prefer_foreach(optimizer)
    return parameters, optimizer


def fewer() -> Any:
    parameters, optimizer = ready()
    return parameters[1:], optimizer


OTHERS: dict[str, Callable[[], Any]] = {
    "first step": lambda: network(torch.optim.Adam, foreach=True),
    "SGD": lambda: ready(torch.optim.SGD),
    "amsgrad": lambda: ready(amsgrad=True),
    "maximize": lambda: ready(maximize=True),
    "coupled decay": lambda: ready(weight_decay=0.1),
    "fused": lambda: ready(fused=True),
    "the user's loop": lambda: ready(foreach=False),
    "tensor rate": lambda: ready(lr=torch.tensor(0.1), foreach=False),
    **{make.__name__: make for make in (hooked, patched, uneven, grouped, fewer)},
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_plain_adam_is_left_to_the_optimizer(name: str) -> None:
    parameters, optimizer = OTHERS[name]()
    with merged_steps(optimizer, parameters) as step:
        assert isinstance(step, TorchStep)
