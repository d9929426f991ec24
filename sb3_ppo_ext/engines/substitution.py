"""Other tensors in the place of a policy's own, and what its code does to them.

What is written to a buffer in place is an operation like any other. A buffer that is assigned is written to by the
graph at its end; so the tensors that a graph was given have to stay the policy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch import trees
from sb3_ppo_ext.host.pytorch.graphs import result_of, updates_batch_statistics, written_by
from sb3_ppo_ext.host.pytorch.modules import buffer_table, parameter_table, storage_id

IN_PLACE = "write to a buffer by self.name.copy_(...)"


class Place(NamedTuple):
    """Where a module has a tensor for which another stands."""

    name: str
    table: dict[str, Any]
    key: str
    tensor: Tensor
    other: Tensor
    storage: int  # of the other


@contextmanager
def substituted(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """``module`` with other tensors for its parameters and buffers, by name, until the end of the block.

    Afterwards the list it gives has every buffer that was assigned in the block: the tensor that stood for it, and its
    new value. Assigned in another way they are a ``CompileError``.

    Not ``torch.func.functional_call``: a feature extractor that actor and critic share is registered under three names,
    and that function then leaves the other tensors in the module.
    """
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    other = {id(own[name]): tensor for name, tensor in tensors.items()}
    places = [
        Place(f"{prefix}.{key}".lstrip("."), table, key, tensor, other[id(tensor)], storage_id(other[id(tensor)]))
        for prefix, part in module.named_modules()
        for table in (parameter_table(part), buffer_table(part))
        for key, tensor in table.items()
        if id(tensor) in other
    ]
    assigned: list[tuple[Tensor, Tensor]] = []
    try:
        for place in places:
            place.table[place.key] = place.other
        yield assigned
        assigned += [(place.other, _new_value(place, places)) for place in places if _is_assigned(place)]
    finally:
        for place in places:
            place.table[place.key] = place.tensor


def _is_assigned(place: Place) -> bool:
    if storage_id(place.other) != place.storage:
        raise CompileError(f"the policy's forward pass assigns {place.name}.data, which no graph sees; {IN_PLACE}")
    return place.table.get(place.key) is not place.other


def _new_value(place: Place, places: list[Place]) -> Tensor:
    new: Any = place.table.get(place.key)
    tensors = isinstance(new, Tensor) and not isinstance(place.tensor, nn.Parameter)
    alone = sum(another.tensor is place.tensor for another in places) == 1
    if not tensors or not alone or new.requires_grad or not alike(new, place.other):
        raise CompileError(f"the policy's forward pass assigns {place.name}, which no graph can carry on; {IN_PLACE}")
    value: Tensor = new
    return value


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether one can stand for the other."""
    return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)


@torch.no_grad()
def carry(assigned: list[tuple[Tensor, Tensor]]) -> None:
    """Writes what was assigned to buffers into the tensors that stood for them; after what they were needed for."""
    values = [new.clone() for _, new in assigned]  # one may be the tensor that stands for another
    for (tensor, _), value in zip(assigned, values, strict=True):
        tensor.copy_(value)


class WrittenBuffers:
    """Buffers that a graph writes to: they stay the tensors it was given, where eager passes may assign others."""

    def __init__(self, policy: nn.Module, names: tuple[str, ...]) -> None:
        written = {id(tensor) for name, tensor in policy.named_buffers() if name in names}
        self._places = [
            (buffer_table(part), key, tensor)
            for part in policy.modules()
            for key, tensor in buffer_table(part).items()
            if tensor is not None and id(tensor) in written
        ]

    def bring_back(self) -> None:
        """Before the graph is called: its tensors with what the policy has now."""
        if moved := [place for place in self._places if place[0][place[1]] is not place[2]]:
            values = [table[key].clone() for table, key, _ in moved]
            for (table, key, tensor), value in zip(moved, values, strict=True):
                table[key] = tensor.copy_(value)


def written_constants(traced: fx.GraphModule, inputs: Inputs) -> tuple[str, ...]:
    """Names of the parameters and buffers among ``inputs["constants"]`` that the graph writes to."""
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    paths: list[Any] = [path for path, leaf in trees.tree_flatten_with_path(inputs)[0] if isinstance(leaf, Tensor)]
    names = {
        storage_id(result_of(node)): path[1].key
        for node, path in zip(placeholders, paths, strict=False)  # noise comes after them
        if path[0].key == "constants"
    }
    if any(map(updates_batch_statistics, traced.graph.nodes)):
        raise CompileError("the policy's forward pass keeps statistics by batch normalization, which is not traced")
    written = {storage_id(tensor) for node in traced.graph.nodes for tensor in written_by(node)}
    return tuple(name for storage, name in names.items() if storage in written)


def refuse_writes(traced: fx.GraphModule, inputs: Inputs) -> None:
    """``CompileError`` where the graph writes to a buffer: it is run more often than the policy, or on padding."""
    for name in written_constants(traced, inputs):
        raise CompileError(f"the policy's forward pass writes to {name}; on a GPU, and of tokens, no graph does")
