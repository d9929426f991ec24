"""Pickling states in which some objects stay where they are.

An object is refused if its class chooses what is pickled, for that may leave the state out (``EzPickle`` keeps the
constructor's arguments alone).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from sb3_ppo_ext.checkpoints.environments.attributes import Found, Path, at_path, shows_its_state
from sb3_ppo_ext.checkpoints.environments.in_place import ARRAY, InPlace


class Refused(TypeError):
    """The state of an object cannot be read."""


def dumps(value: Any, found: dict[int, Found]) -> bytes:
    """``pickle.dumps``, with the objects that stay in place as references and states."""
    file = io.BytesIO()
    Writer(file, found).dump(value)
    return file.getvalue()


def _in_place(path: Path, state: Any) -> Any:
    raise NotImplementedError("the reader resolves it")


class Writer(pickle.Pickler):
    """Pickles states, and refuses objects that may leave theirs out."""

    def __init__(self, file: io.BytesIO, found: dict[int, Found]) -> None:
        super().__init__(file, protocol=5)
        self._found = found

    def reducer_override(self, obj: Any) -> Any:
        """The reference of an object that stays in place; what pickle does, for others."""
        entry = self._found.get(id(obj))
        if entry is not None:
            return _in_place, (entry.path, entry.rule.state(obj))
        kind: Any = type(obj)
        if not isinstance(obj, type) and not shows_its_state(kind):
            raise Refused(f"{kind.__name__} chooses what is pickled of it")
        return NotImplemented


class Reader(pickle.Unpickler):
    """Finds the objects that stay in place; ``later`` has what is to be put into them."""

    def __init__(self, file: io.BytesIO, layers: list[Any], found: dict[int, Found]) -> None:
        super().__init__(file)
        self._layers, self._found = layers, found
        self.later: list[tuple[Path, InPlace, Any, Any]] = []

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """Classes by name; references are resolved."""
        if (module, name) == (__name__, "_in_place"):
            return self._resolved
        return super().find_class(module, name)  # type: ignore[no-any-return]

    def _resolved(self, path: Path, state: Any) -> Any:
        try:
            value = at_path(self._layers, path)
        except (LookupError, TypeError) as error:
            raise LookupError(f"{name_of_path(self._layers, path)} is missing") from error
        found = self._found.get(id(value))
        if found is not None:
            self.later.append((path, found.rule, value, state))
        elif isinstance(value, np.ndarray) and isinstance(state, np.ndarray):  # over memory of its own here
            self.later.append((path, ARRAY, value, state))
        elif state is not None:
            raise LookupError(f"{name_of_path(self._layers, path)} is {type(value).__name__} here")
        return value


def name_of_path(layers: list[Any], path: Path) -> str:
    """Returns a path as it is written in messages."""
    return f"{type(layers[path[0]]).__name__}.{'.'.join(map(str, path[1:]))}"
