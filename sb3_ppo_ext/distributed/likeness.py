"""What has to be alike in all processes: compared once, at the start; and what the others take over from rank 0."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

from sb3_ppo_ext.distributed.processes import Processes, together

LENGTH = 120  # of a value's text in an error
DRIFT = 1e-4  # of a parameter, between two rollouts: processors of several kinds round differently


def require_alike(processes: Processes, described: Mapping[str, str]) -> None:
    """``ValueError`` in all processes where ``described``, name -> value as text, differs between them."""
    all_described = processes.objects(dict(described))
    names = dict.fromkeys(name for texts in all_described for name in texts)
    different = []
    for name in names:
        ranks: dict[str, list[int]] = {}
        for rank, texts in enumerate(all_described):
            ranks.setdefault(texts.get(name, "missing"), []).append(rank)
        if len(ranks) > 1:
            values = "; ".join(f"{value[:LENGTH]} on rank {', '.join(map(str, on))}" for value, on in ranks.items())
            different.append(f"{name}: {values}")
    with together(processes):  # all have found the same
        if different:
            raise ValueError(
                "the processes of one training need the same arguments, policy and versions. These differ: "
                + " | ".join(different)
            )


def description(value: Any, *, within: bool = False) -> str:
    """A value of an argument as text that is the same in every process.

    Functions are described by what they return of the progress; those ``within`` a container, which may load a model,
    by their names.
    """
    if within and callable(value) and not isinstance(value, type):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    if callable(value) and not isinstance(value, type):
        with_value = getattr(value, "settings", None)
        if callable(with_value):
            return str(with_value())
        try:
            return f"{type(value).__name__} {[float(value(progress)) for progress in (1.0, 0.7, 0.3, 0.0)]}"
        except Exception:  # not a schedule
            return str(getattr(value, "__qualname__", type(value).__qualname__))
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Mapping):
        entries = sorted(value.items(), key=str)
        return "{" + ", ".join(f"{key}: {description(entry, within=True)}" for key, entry in entries) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(description(entry, within=True) for entry in value) + "]"
    if isinstance(value, (set, frozenset)):  # whose order differs between processes
        return description(sorted(value, key=str))
    if is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__} {description(vars(value))}"
    return repr(value)


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor], processes: Processes) -> float:
    """Replaces the tensors by those of rank 0; returns the largest difference from them there was."""
    largest = 0.0
    if processes.count == 1:
        return largest
    for alike in _alike(tensors).values():
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
        first = flat.clone()
        processes.copy_first(first)
        if first.equal(flat):
            continue
        largest = max(largest, (first - flat).abs().nan_to_num(torch.inf).max().item())
        for tensor, view in zip(alike, torch.split(first, [tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(view.view(tensor.shape))
    return largest


def _alike(tensors: Iterable[Tensor]) -> dict[Any, list[Tensor]]:
    """The tensors by type and device, in their order."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel():
            groups.setdefault((tensor.dtype, tensor.device.type), []).append(tensor)
    return groups


def require_little_drift(difference: float) -> None:
    """``ValueError`` where the parameters of this process have left those of rank 0."""
    if difference > DRIFT:
        raise ValueError(
            f"its parameters differ by {difference:.3g} from those of rank 0, which no rounding explains: something "
            "changes them in one process alone (a callback, or running statistics in the policy such as BatchNorm's)"
        )
