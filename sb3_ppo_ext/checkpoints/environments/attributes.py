"""Paths to the objects that stay in place when a state is put back, found among the attributes of layers."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_ppo_ext.checkpoints.environments.in_place import ARRAY, UNTOUCHED, InPlace, module_of, rule_for
from sb3_ppo_ext.checkpoints.environments.layers import SETTINGS

Path = tuple[Any, ...]  # index of a layer, then names of attributes, keys and indices of containers

LEAVES = frozenset((bool, int, float, complex, str, bytes, type(None), np.bool_, np.float32, np.float64, np.int64))
WIDEST = 64  # entries of containers that are searched; larger ones hold data
DEEPEST = 6  # steps of a path

# Packages whose objects pickle as what they are. Elsewhere a class that chooses what is pickled may leave its state
# out: ``EzPickle`` keeps the constructor's arguments alone.
PICKLABLE = {"builtins", "collections", "datetime", "decimal", "enum", "fractions", "numpy", "pathlib", "random"} | {
    *("uuid", "torch", "logging", "array", "zoneinfo", "itertools", "operator", "pandas", "scipy", "stable_baselines3")
}
PLAIN = (int, float, complex, str, bytes, tuple, list, dict, set, frozenset)


@dataclass(frozen=True)
class Found:
    """An object that stays in place, where it was found."""

    value: Any  # the reference keeps its id from being used again
    path: Path
    rule: InPlace


@functools.lru_cache(maxsize=4096)
def shows_its_state(kind: type) -> bool:
    """True if the pickle of an object holds its state: all attributes, or what a trusted package chooses."""
    if issubclass(kind, PLAIN):
        return True
    for name in ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__"):
        owner = next((base for base in kind.__mro__ if name in vars(base)), object)
        package = module_of(owner).split(".")[0]
        if owner is not object and package not in PICKLABLE and not package.startswith("_cython"):  # its functions
            return False
    return True


def objects_in_place(layers: list[Any]) -> dict[int, Found]:
    """Returns the objects in place among the attributes of the layers, by id; the layers themselves are included."""
    found = {id(layer): Found(layer, (index,), UNTOUCHED) for index, layer in enumerate(layers)}
    seen = set(found)
    for index, layer in enumerate(layers):
        for name, value in vars(layer).items():
            if name not in SETTINGS and type(value) not in LEAVES:
                _search(value, (index, name), found, seen)
    return found


def _search(value: Any, path: Path, found: dict[int, Found], seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    kind: Any = type(value)
    rule = (ARRAY if _is_foreign(value) else None) if kind is np.ndarray else rule_for(kind)
    if rule is not None:
        found[id(value)] = Found(value, path, rule)
    elif len(path) <= DEEPEST:
        for key, entry in _entries(value, kind):
            if type(entry) not in LEAVES:
                _search(entry, (*path, key), found, seen)


def _entries(value: Any, kind: type) -> Any:
    if kind is np.ndarray:
        return ()
    if isinstance(value, (dict, list, tuple)):
        return () if len(value) > WIDEST else value.items() if isinstance(value, dict) else enumerate(value)
    return vars(value).items() if hasattr(value, "__dict__") and shows_its_state(kind) else ()


def _is_foreign(array: np.ndarray[Any, Any]) -> bool:
    base: Any = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview):
        base = base.obj
    return array.flags.writeable and not isinstance(base, (type(None), bytes, bytearray))


def at_path(layers: list[Any], path: Path) -> Any:
    """The object at a path; ``LookupError`` where there is none."""
    value = layers[path[0]]
    for key in path[1:]:
        value = value[key] if isinstance(value, (dict, list, tuple)) else vars(value)[key]
    return value
