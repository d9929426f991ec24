"""The state of layers, as bytes, and its way back into other layers of the same classes.

The attributes of layers go into one pickle, so that what they share they still share afterwards. Objects of
``in_place`` are referred to. What only looks as if it could be pickled is refused: an object whose class chooses what
is pickled may leave its state out (``EzPickle`` keeps the constructor's arguments alone).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np

from sb3_ppo_ext.checkpoints.environments.attributes import Found, Path, at_path, objects_in_place, shows_its_state
from sb3_ppo_ext.checkpoints.environments.in_place import ARRAY, UNTOUCHED, InPlace
from sb3_ppo_ext.checkpoints.environments.layers import path_of_class, put_into_layer, state_of_layer

Snapshot = dict[str, Any]
LeftOut = dict[int, dict[str, str]]  # index of a layer -> name of an attribute -> why it is not saved


class Refused(TypeError):
    """An object whose state cannot be read."""


def take(layers: list[Any], left_out: LeftOut | None = None, split: int = 0) -> Snapshot:
    """The state of the layers; ``left_out`` names the attributes that are not in it, with the reason of each.

    Handed to the next call for the same layers, it saves trying these again. The layers before and after ``split`` make
    two pickles, each of which can be read where the other one cannot.
    """
    left_out = {} if left_out is None else left_out
    while True:
        found = objects_in_place(layers)
        values = [state_of_layer(layer, left_out.get(index, ())) for index, layer in enumerate(layers)]
        try:
            pickles = [_dumps(values[:split], found), _dumps(values[split:], found)]
        except Exception:  # whatever a user's object raises
            if not _add_unsaved(left_out, values, found):
                raise
        else:
            unsaved = {index: dict(names) for index, names in left_out.items()}
            paths = [path_of_class(layer) for layer in layers]
            return {"layers": paths, "split": split, "pickles": pickles, "left_out": unsaved}


def put(layers: list[Any], snapshot: Snapshot, indices: Iterable[int], names: Collection[str] | None = None) -> None:
    """Puts the state of the layers at ``indices`` back, or only their attributes ``names``.

    Nothing is changed before everything has been read. ``LookupError`` where an object that stays in place is missing
    or does not take its state.
    """
    split, chosen = snapshot["split"], sorted(indices)
    found = objects_in_place(layers)
    states: dict[int, dict[str, Any]] = {}
    for first, last, data in zip((0, split), (split, len(layers)), snapshot["pickles"], strict=True):
        if any(first <= index < last for index in chosen):
            reader = _Reader(io.BytesIO(data), layers, found)
            states.update(enumerate(reader.load(), first))
            for path, rule, value, state in reader.later if names is None else ():
                if path[0] in chosen:
                    _restore(layers, path, rule, value, state)
    for index in chosen:
        current = vars(layers[index])
        state = {
            name: value
            for name, value in states[index].items()
            if (names is None or name in names) and not (value is None and _is_untouched(found, current.get(name)))
        }
        put_into_layer(layers[index], state)


def _is_untouched(found: dict[int, Found], value: Any) -> bool:
    """Whether it is a file or a window that the saved environment did not have."""
    return value is not None and id(value) in found and found[id(value)].rule is UNTOUCHED


def _restore(layers: list[Any], path: Path, rule: InPlace, value: Any, state: Any) -> None:
    try:
        rule.restore(value, state)
    except Exception as error:
        raise LookupError(f"{_name(layers, path)}: {error}") from error


def require_same_layers(layers: list[Any], snapshot: Snapshot) -> None:
    """Refuses layers of other classes than those that were saved, or in another order."""
    found = [path_of_class(layer) for layer in layers]
    if found != snapshot["layers"]:
        saved = [name.rsplit(".", 1)[-1] for name in snapshot["layers"]]
        raise ValueError(
            f"env={' of '.join(name.rsplit('.', 1)[-1] for name in found)}: the checkpoint is of {' of '.join(saved)}; "
            "make the environment as the run made it, with the same wrappers in the same order and as many environments"
        )


def _add_unsaved(left_out: LeftOut, values: list[dict[str, Any]], found: dict[int, Found]) -> bool:
    """Finds the attributes that cannot be pickled; whether there were any."""
    any_found = False
    for index, attributes in enumerate(values):
        for name, value in attributes.items():
            try:
                _dumps(value, found)
            except Exception as error:
                left_out.setdefault(index, {})[name] = str(error) or type(error).__name__
                any_found = True
    return any_found


def _dumps(value: Any, found: dict[int, Found]) -> bytes:
    file = io.BytesIO()
    _Writer(file, found).dump(value)
    return file.getvalue()


def _in_place(path: Path, state: Any) -> Any:
    raise NotImplementedError("the reader resolves it")


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, found: dict[int, Found]) -> None:
        super().__init__(file, protocol=5)
        self._found = found

    def reducer_override(self, obj: Any) -> Any:
        entry = self._found.get(id(obj))
        if entry is not None:
            return _in_place, (entry.path, entry.rule.state(obj))
        kind: Any = type(obj)
        if not isinstance(obj, type) and not shows_its_state(kind):
            raise Refused(f"{kind.__name__} chooses what is pickled of it")
        return NotImplemented


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, layers: list[Any], found: dict[int, Found]) -> None:
        super().__init__(file)
        self._layers, self._found = layers, found
        self.later: list[tuple[Path, InPlace, Any, Any]] = []

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == (__name__, "_in_place"):
            return self._resolved
        return super().find_class(module, name)  # type: ignore[no-any-return]

    def _resolved(self, path: Path, state: Any) -> Any:
        try:
            value = at_path(self._layers, path)
        except (LookupError, TypeError) as error:
            raise LookupError(f"{_name(self._layers, path)} is missing") from error
        found = self._found.get(id(value))
        if found is not None:
            self.later.append((path, found.rule, value, state))
        elif isinstance(value, np.ndarray) and isinstance(state, np.ndarray):  # over memory of its own here
            self.later.append((path, ARRAY, value, state))
        elif state is not None:
            raise LookupError(f"{_name(self._layers, path)} is {type(value).__name__} here")
        return value


def _name(layers: list[Any], path: Path) -> str:
    return f"{type(layers[path[0]]).__name__}.{'.'.join(map(str, path[1:]))}"
