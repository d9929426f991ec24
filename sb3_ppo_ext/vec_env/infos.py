"""The infos of vector environments: from columns, as they are reported, to a dict per environment, as in SB3."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, SupportsIndex, overload

import numpy as np

Info = dict[str, Any]  # one column per key, as vector environments report them


def info_row(info: Info, row: int) -> dict[str, Any]:
    """The info of one environment. A mask ``_key`` beside a column ``key`` marks the environments that have it."""
    found: dict[str, Any] = {}
    for key, column in info.items():
        if key.startswith("_") and key[1:] in info:
            continue
        mask = info.get("_" + key)
        if mask is not None and not mask[row]:
            continue
        if isinstance(column, dict):
            found[key] = info_row(column, row)
        else:
            found[key] = column[row] if _is_column(column) else column
    return found


def _is_column(values: Any) -> bool:
    if type(values) is np.ndarray:  # first: the others take ten times as long
        return True
    if isinstance(values, (np.ndarray, Sequence)):
        return not isinstance(values, str)
    return bool(getattr(values, "shape", ()))  # tensors


def copied_columns(info: Info) -> Info:
    """The same columns in arrays of their own, for environments that reuse theirs."""
    return {
        key: copied_columns(column) if isinstance(column, dict) else np.array(column) if _is_column(column) else column
        for key, column in info.items()
    }


class Infos(list[dict[str, Any]]):
    """The info of each environment after one step: plain dicts, each made from the columns when it is first read.

    ``row_of(columns, row)`` makes a dict once: what is written into it stays in this step and in no other.
    """

    __slots__ = ("columns", "row_of")
    columns: Info
    row_of: Callable[[Info, int], dict[str, Any]]

    @overload
    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: Any) -> Any:
        """One dict, or the list of several."""
        found = super().__getitem__(index)
        if found is None:
            row = range(len(self))[index]
            found = self.row_of(self.columns, row)
            super().__setitem__(row, found)
        elif isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        return found

    def __setitem__(self, index: Any, value: Any) -> None:
        """Replaces one dict, or several."""
        if isinstance(index, slice):
            self.made()
        super().__setitem__(index, value)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The dicts in the order of the environments."""
        return iter(self.made())

    def made(self) -> list[dict[str, Any]]:
        """All dicts, in a new list."""
        return [self[row] for row in range(len(self))]

    def worth_counting(self, done: np.ndarray[Any, Any]) -> list[int]:
        """The rows with news of an episode: it ended, its dict was read, or there is a column of episodes."""
        if "episode" in self.columns:
            return list(range(len(self)))
        return [row for row, info in enumerate(super().__iter__()) if info is not None or done[row]]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Copies and pickles are lists of dicts."""
        return list, (self.made(),)


def unmade_infos(unmade: Any, columns: Info, row_of: Callable[[Info, int], dict[str, Any]]) -> Infos:
    """``unmade`` has a None per environment: it is in the list until the dict is read.

    This is no method ``__init__``: that of ``list`` takes a third of the time, and this is called at every step.
    """
    infos = Infos(unmade)
    infos.columns, infos.row_of = columns, row_of
    return infos


def _over_made(name: str) -> Any:
    """A method of ``list`` that reads the entries themselves, applied to the dicts."""
    method = getattr(list, name)

    def over_made(self: Infos, *args: Any, **kwargs: Any) -> Any:
        self.made()
        return method(self, *(_plain(argument) for argument in args), **kwargs)

    over_made.__name__, over_made.__doc__ = name, method.__doc__
    return over_made


def _plain(value: Any) -> Any:
    return value.made() if isinstance(value, Infos) else value


def _added_to(self: Infos, other: list[Any]) -> list[Any]:
    return [*other, *self]


for _name in (
    *("__add__", "__contains__", "__delitem__", "__eq__", "__ge__", "__gt__", "__iadd__", "__imul__", "__le__"),
    *("__lt__", "__mul__", "__ne__", "__repr__", "__reversed__", "__rmul__"),
    *("append", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse", "sort"),
):
    setattr(Infos, _name, _over_made(_name))
Infos.__radd__ = _added_to  # type: ignore[attr-defined]  # list has none, and would join the entries themselves
