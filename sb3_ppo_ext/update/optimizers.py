"""The optimizer of a policy under PPOX: learning rates by parameter group, and faster loops of the same arithmetic."""

from __future__ import annotations

import math
from typing import Any

import torch

RATIO = "lr_ratio"  # of a parameter group; a policy may set it itself


class GroupRates:
    """Moves the learning rates of an optimizer's parameter groups together, each in its ratio to the one rate.

    Stable-Baselines3 sets every group to the same rate; a policy whose value head has ten times the backbone's rate
    would lose that at the first update. The ratio is computed once and kept in the group under ``RATIO``, and so in the
    optimizer's state dict, whatever the rate is when that is saved or loaded.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rate: float, *others: float) -> None:
        """``rate`` is in force, and ``optimizer`` was built for it.

        Where that is not certain, ``others`` are further rates for which it may have been built. The base of the ratios
        is the first of all these, and of the optimizer's default, that a group has; else the rate of the first group.
        """
        self.optimizer = optimizer
        self.rate = rate
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        base = rate
        if others:
            candidates = (rate, *others, float(optimizer.defaults.get("lr", rates[0])))
            base = next((value for value in candidates if any(math.isclose(value, lr) for lr in rates)), rates[0])
        self._known = self._ratios_to(base, rates)
        if None not in self._known:
            self.ratios()

    def _ratios_to(self, base: float, rates: list[float]) -> list[float | None]:
        """The ratio of each group; None where it cannot be computed, because the base is 0."""
        stated = [group.get(RATIO) for group in self.optimizer.param_groups]
        alike = len(rates) == 1 or (base > 0 and len(set(rates)) == 1)
        if alike or (base == 0 and any(stated)):  # where some are stated, the others follow the rate itself
            computed: list[float | None] = [1.0] * len(rates)
        else:
            computed = [rate / base if base > 0 else None for rate in rates]
        return [other if ratio is None else ratio for ratio, other in zip(stated, computed, strict=True)]

    def ratios(self) -> list[float]:
        """The ratio of each group; a group without it, of an older file or added since, is given it."""
        groups = self.optimizer.param_groups
        known = dict(enumerate(self._known))
        found = [
            group[RATIO] if RATIO in group else known[index] if index in known else self._of_new(group)
            for index, group in enumerate(groups)
        ]
        if None in found:
            raise ValueError(
                f"learning_rate starts at 0, so the ratios of the optimizer's {len(groups)} parameter groups cannot be "
                "read from it; let it start above 0, as in Warmup(0.1, after, start=1e-8), or state the ratio in every "
                f'group, as in {{"params": ..., "lr": ..., "{RATIO}": 10.0}}'
            )
        if len(groups) > 1:
            for group, ratio in zip(groups, found, strict=True):
                group[RATIO] = ratio
        self._known = found
        return [ratio for ratio in found if ratio is not None]

    def _of_new(self, group: dict[str, Any]) -> float | None:
        """The ratio of a group that was added while the rate moves; 1 for the optimizer's default rate."""
        rate = float(group["lr"])
        if rate == float(self.optimizer.defaults.get("lr", self.rate)):
            return 1.0
        return rate / self.rate if self.rate > 0 else None

    def apply(self, rate: float) -> None:
        """Sets every group to ``rate`` times its ratio."""
        for group, ratio in zip(self.optimizer.param_groups, self.ratios(), strict=True):
            group["lr"] = rate * ratio
        self.rate = rate


def rates_of(model: Any) -> GroupRates:
    """The rates of the optimizer that ``model`` has now; its user may have replaced it."""
    if model._rates.optimizer is not model.policy.optimizer:
        model._rates = GroupRates(model.policy.optimizer, model._rates.rate, model.lr_schedule(1.0))
    rates: GroupRates = model._rates
    return rates


def prefer_foreach(optimizer: torch.optim.Optimizer) -> None:
    """Lets Adam and AdamW loop over their tensors in C++, where torch's default on a CPU is a loop in Python.

    The operations and their order are the same, so the bits are, in 0.6 of the time. A user's choice is not changed.
    """
    if type(optimizer) in (torch.optim.Adam, torch.optim.AdamW):
        for group in optimizer.param_groups:
            if group["foreach"] is None and not group["fused"] and not group["differentiable"]:
                group["foreach"] = True


def prefer_fused(optimizer: torch.optim.Optimizer) -> None:
    """Lets Adam and AdamW step in one kernel: on a CPU in a third of the time.

    Equal up to rounding, for policies that need not repeat Stable-Baselines3's bits. A user's choice is not changed.
    """
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        parameters = group["params"]
        possible = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        if possible and group["foreach"] is None and group["fused"] is None and not group["differentiable"]:
            group["fused"] = True
            for parameter in group["params"]:
                if "step" in (state := optimizer.state.get(parameter, {})):  # the kernel reads it on the device
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)
