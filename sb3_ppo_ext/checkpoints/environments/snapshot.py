"""The state of layers, as bytes, and its way back into other layers of the same classes.

The attributes of layers go into one pickle, so that what they share they still share afterwards. Objects of
``in_place`` are referred to.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable
from typing import Any

from sb3_ppo_ext.checkpoints.environments.attributes import Found, Path, objects_in_place
from sb3_ppo_ext.checkpoints.environments.in_place import UNTOUCHED, InPlace
from sb3_ppo_ext.checkpoints.environments.layers import path_of_class, put_into_layer, state_of_layer
from sb3_ppo_ext.checkpoints.environments.pickles import Reader, dumps, name_of_path

Snapshot = dict[str, Any]
Later = tuple[Path, InPlace, Any, Any]  # of an object that stays in place: path, rule, the object, its state
LeftOut = dict[int, dict[str, str]]  # index of a layer -> name of an attribute -> why it is not saved


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
            pickles = [dumps(values[:split], found), dumps(values[split:], found)]
        except Exception as error:  # whatever a user's object raises
            _add_unsaved(left_out, values, found, str(error) or type(error).__name__)
        else:
            unsaved = {index: dict(names) for index, names in left_out.items()}
            paths = [path_of_class(layer) for layer in layers]
            return {"layers": paths, "split": split, "pickles": pickles, "left_out": unsaved}


def put(layers: list[Any], snapshot: Snapshot, indices: Iterable[int], names: Collection[str] | None = None) -> None:
    """Puts the state of the layers at ``indices`` back, or only their attributes ``names``.

    Nothing is changed before everything has been read. ``LookupError`` where an object that stays in place is missing
    or does not take its state.
    """
    chosen, found = sorted(indices), objects_in_place(layers)
    states, later = read(layers, snapshot, chosen, found)
    for path, rule, value, state in later if names is None else ():
        _restore(layers, path, rule, value, state)
    for index in chosen:
        current = vars(layers[index])
        state = {
            name: value
            for name, value in states[index].items()
            if (names is None or name in names) and not (value is None and _is_untouched(found, current.get(name)))
        }
        put_into_layer(layers[index], state)


def read(
    layers: list[Any], snapshot: Snapshot, indices: Collection[int], found: dict[int, Found]
) -> tuple[dict[int, dict[str, Any]], list[Later]]:
    """The attributes of the layers at ``indices``, and what is to be put into the objects ``found`` in place.

    ``LookupError`` where such an object is missing.
    """
    split = snapshot["split"]
    states: dict[int, dict[str, Any]] = {}
    later: list[Later] = []
    for first, last, data in zip((0, split), (split, len(layers)), snapshot["pickles"], strict=True):
        if any(first <= index < last for index in indices):
            reader = Reader(io.BytesIO(data), layers, found)
            states.update(enumerate(reader.load(), first))
            later += [entry for entry in reader.later if entry[0][0] in indices]
    return states, later


def _is_untouched(found: dict[int, Found], value: Any) -> bool:
    """True for a file or a window, which the saved environment did not have."""
    return value is not None and id(value) in found and found[id(value)].rule is UNTOUCHED


def _restore(layers: list[Any], path: Path, rule: InPlace, value: Any, state: Any) -> None:
    try:
        rule.restore(value, state)
    except Exception as error:
        raise LookupError(f"{name_of_path(layers, path)}: {error}") from error


def require_same_layers(layers: list[Any], snapshot: Snapshot) -> None:
    """Refuses layers of other classes than those that were saved, or in another order."""
    found = [path_of_class(layer) for layer in layers]
    if found != snapshot["layers"]:
        saved = [name.rsplit(".", 1)[-1] for name in snapshot["layers"]]
        raise ValueError(
            f"env={' of '.join(name.rsplit('.', 1)[-1] for name in found)}: the checkpoint is of {' of '.join(saved)}; "
            "make the environment as the run made it, with the same wrappers in the same order and as many environments"
        )


def _add_unsaved(left_out: LeftOut, values: list[dict[str, Any]], found: dict[int, Found], reason_of_all: str) -> None:
    """Adds the attributes that cannot be pickled; all, where each of them can be, but not together."""
    reasons: LeftOut = {}
    for index, attributes in enumerate(values):
        for name, value in attributes.items():
            try:
                dumps(value, found)
            except Exception as error:
                reasons.setdefault(index, {})[name] = str(error) or type(error).__name__
    for index, attributes in enumerate(values):
        left_out.setdefault(index, {}).update(
            reasons.get(index, {}) if reasons else dict.fromkeys(attributes, reason_of_all)
        )
