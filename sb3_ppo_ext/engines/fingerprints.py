"""The keys of graphs: the policy with its attributes, and the shapes and plain values of the inputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.host.pytorch import trees


def signature(inputs: Inputs) -> Any:
    """The structure of the inputs, the shapes and types of their tensors, and their plain values."""
    leaves, structure = trees.tree_flatten(inputs)
    shapes = (
        (leaf.shape, leaf.dtype, leaf.stride(), leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    )
    return (structure, *shapes)


class Fingerprint(NamedTuple):
    """The identity and the attributes of each module."""

    modules: tuple[tuple[int, type], ...]
    attributes: tuple[tuple[tuple[str, object], ...], ...]


def fingerprint(policy: nn.Module) -> Fingerprint:
    """Differs where a module was replaced, switched or set to another value; the values of tensors do not matter."""
    modules = list(policy.modules())
    return Fingerprint(
        tuple((id(module), type(module)) for module in modules),
        tuple(tuple((name, _comparable(value)) for name, value in vars(module).items()) for module in modules),
    )


def changing_attribute(known: Iterable[Any], key: Any) -> tuple[int, str]:
    """How many keys differ from ``key`` in nothing but the values of attributes, and the name of such an attribute."""
    count, name = 0, ""
    for old in known:
        if len(old) == len(key) and all(map(_alike, old, key)):
            count += 1
            name = next(filter(None, map(_changed_attribute, old, key)), name)
    return count, name


def _alike(old: Any, new: Any) -> bool:
    if isinstance(old, Fingerprint) and isinstance(new, Fingerprint):
        return old.modules == new.modules
    return bool(old == new)


def _changed_attribute(old: Any, new: Any) -> str:
    if not isinstance(old, Fingerprint) or old == new:
        return ""
    modules = zip(old.modules, old.attributes, new.attributes, strict=True)
    kind, changed = next((kind, set(after) ^ set(before)) for (_, kind), before, after in modules if before != after)
    return f"{kind.__name__}.{min(name for name, _ in changed)}" if changed else kind.__name__


def plain_attributes(module: nn.Module) -> tuple[tuple[str, object], ...]:
    """The public attributes of the module that are plain values, by name."""
    plain = (bool, int, float, str, type(None))
    return tuple((name, value) for name, value in vars(module).items() if name[0] != "_" and isinstance(value, plain))


def _comparable(value: object) -> object:
    """Plain values by what they are, functions by identity; all else is no part of the fingerprint."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return id(value) if callable(value) else None
