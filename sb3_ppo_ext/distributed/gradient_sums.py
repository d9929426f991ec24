"""The gradient of a minibatch becomes that of the rows of all processes; its sums can begin before it is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from sb3_ppo_ext.distributed.processes import Processes

BUCKET = 25 * 2**20  # bytes in float32, as in torch's DistributedDataParallel: large enough for the network's bandwidth


class GradientSums:
    """One minibatch: the gradients of the parameters, in buckets from the last parameter to the first.

    Gradients are means over this process's rows, and ``share`` is its part of all rows; they travel in float32. All
    processes sum the buckets in the same order. The last bucket carries the statistics as well, so that a small
    network needs one sum.
    """

    def __init__(self, parameters: Iterable[Tensor], share: float, processes: Processes) -> None:
        self.share, self.processes = share, processes
        self.buckets = list(_buckets(list(parameters)))
        self._begun: list[tuple[Tensor, Callable[[], None]]] = []

    @contextmanager
    def begun_early(self) -> Iterator[None]:
        """The block's backward pass completes the gradients; the sum of a bucket begins when all of its own are there.

        What the pass leaves out begins with ``finish``. A process without any of it is waited for there.
        """
        missing = [set(map(id, bucket)) for bucket in self.buckets[:-1]]

        def complete(index: int, parameter: Tensor) -> None:
            if index < len(self._begun):
                raise RuntimeError("a gradient has changed after its sum over the processes began")
            missing[index].discard(id(parameter))
            while len(self._begun) < len(missing) and not missing[len(self._begun)]:
                self._begin()

        hooks = [
            parameter.register_post_accumulate_grad_hook(partial(complete, index))
            for index, bucket in enumerate(self.buckets[:-1])
            for parameter in bucket
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def finish(self, statistics: Tensor | None = None) -> Tensor | None:
        """Replaces every gradient by that of all rows; returns the ``statistics`` [K] of all rows.

        A parameter that has a gradient in no process stays without, so that the optimizer leaves it where it is.
        """
        while len(self._begun) < len(self.buckets) - 1:
            self._begin()
        parameters = [parameter for bucket in self.buckets for parameter in bucket]
        known = [float(parameter.grad is not None) for parameter in parameters]
        numbers = [parameters[0].new_tensor(known, dtype=torch.float32)]
        if statistics is not None:
            numbers.append(statistics.float() * self.share)
        flat = torch.cat([self._flat(self.buckets[-1]), *numbers])
        self.processes.add(flat)
        lengths = [flat.numel() - sum(map(len, numbers)), *map(len, numbers)]
        last, somewhere, *found = torch.split(flat, lengths)
        sums = [last]
        for begun, wait in reversed(self._begun):
            wait()
            sums.insert(0, begun)
        flags = iter(somewhere.tolist())
        for bucket, of_bucket in zip(self.buckets, sums, strict=True):
            _write(bucket, of_bucket, flags)
        return found[0] if found else None

    @torch.no_grad()
    def _begin(self) -> None:
        flat = self._flat(self.buckets[len(self._begun)])
        self._begun.append((flat, self.processes.begin_add(flat)))

    def _flat(self, bucket: list[Tensor]) -> Tensor:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        return torch.cat([gradient.reshape(-1).float() * self.share for gradient in gradients])


def _buckets(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for parameter in reversed(parameters):
        if bucket and size + 4 * parameter.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += 4 * parameter.numel()
    yield bucket


def _write(parameters: list[Tensor], flat: Tensor, somewhere: Iterator[float]) -> None:
    views = torch.split(flat, [parameter.numel() for parameter in parameters])
    for parameter, view in zip(parameters, views, strict=True):
        has_gradient = next(somewhere)
        if parameter.grad is not None:
            parameter.grad.copy_(view.view_as(parameter))
        elif has_gradient:
            parameter.grad = view.view_as(parameter).to(parameter.dtype)
