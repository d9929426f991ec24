"""What a graph was made for: the policy as it stands, and the shapes and plain values of its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch import trees


def signature(inputs: Inputs) -> Any:
    """What a graph was made for: structure, shapes and types of its inputs, and the plain values among them."""
    leaves, structure = trees.tree_flatten(inputs)
    shapes = (
        (leaf.shape, leaf.dtype, leaf.stride(), leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    )
    return (structure, *shapes)


class Fingerprint(NamedTuple):
    """Of each module which it is, and its attributes."""

    modules: tuple[tuple[int, type], ...]
    attributes: tuple[tuple[tuple[str, object], ...], ...]


def fingerprint(policy: nn.Module) -> Fingerprint:
    """Changes when a part of the policy is replaced, switched or set to another value; tensors are not looked at."""
    parts = list(policy.modules())
    return Fingerprint(
        tuple((id(part), type(part)) for part in parts),
        tuple(tuple((name, _told(value)) for name, value in vars(part).items()) for part in parts),
    )


def restless(known: Iterable[Any], key: Any) -> tuple[int, str]:
    """How many keys differ from ``key`` in nothing but the values of attributes, and the name of such an attribute."""
    count, name = 0, ""
    for old in known:
        if len(old) == len(key) and all(map(_alike, old, key)):
            count += 1
            name = next(filter(None, map(_moved, old, key)), name)
    return count, name


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Fingerprint) and isinstance(other, Fingerprint):
        return one.modules == other.modules
    return bool(one == other)


def _moved(one: Any, other: Any) -> str:
    if not isinstance(one, Fingerprint) or one == other:
        return ""
    pairs = zip(one.modules, one.attributes, other.attributes, strict=True)
    (kind, changed), *_ = [(kind, set(new) ^ set(old)) for (_, kind), old, new in pairs if old != new]
    return f"{kind.__name__}.{min(name for name, _ in changed)}" if changed else kind.__name__


def _told(value: object) -> object:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return id(value) if callable(value) else None
