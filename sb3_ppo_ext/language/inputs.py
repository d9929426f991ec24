"""Sequences and numbers as users bring them: of any container, by position; of any library, 0-d ones included."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Mapping, Sequence, Set
from decimal import Decimal
from typing import Any

from sb3_ppo_ext.unknown_arguments import require_choice


def in_order(values: Any) -> list[Any] | None:
    """The values by position, whatever labels their container has; None where they have no order, or there are none.

    Iteration is by position in every container; indexing is by label in a pandas Series. Texts, mappings, sets and
    tables (iteration gives the names of their columns) are no sequences here.
    """
    table = not isinstance(values, Sequence) and (hasattr(values, "columns") or hasattr(values, "column_names"))
    if isinstance(values, (str, bytes, Mapping, Set)) or table:
        return None
    if hasattr(values, "to_pylist"):  # pyarrow's elements are equal to nothing of Python's
        pylist: list[Any] = values.to_pylist()
        return pylist
    try:
        each = iter(values)
    except TypeError:  # a number, None, an array without dimensions
        return None
    return list(each)


def columns_of(columns: Any, count: int) -> dict[str, list[Any]]:
    """Name -> one value for each of ``count`` prompts, by position; a pandas DataFrame is a mapping too."""
    if columns is None:
        return {}
    if not hasattr(columns, "items"):
        raise ValueError(f"columns={reprlib.repr(columns)}: a mapping, name -> one value per prompt, is needed")
    listed: dict[str, list[Any]] = {}
    for name, column in columns.items():
        values = in_order(column)
        if not isinstance(name, str) or values is None:
            raise ValueError(
                f"columns[{name!r}] is {reprlib.repr(column)}: a name with one value per prompt, in any list, array or "
                "Series, is needed"
            )
        if len(values) != count:
            raise ValueError(f"columns[{name!r}] has {len(values)} values for {count} prompts")
        listed[name] = values
    return listed


def number_of(value: Any) -> float | None:
    """The number that ``value`` is, in whatever library; None where it is none."""
    scalar = _scalar_of(value)
    return float(scalar) if isinstance(scalar, (numbers.Real, Decimal)) else None


def whole_number_of(value: Any) -> int | None:
    """The whole number that ``value`` is, in whatever library; None where it is none, 3.0 included."""
    scalar = _scalar_of(value)
    return int(scalar) if isinstance(scalar, numbers.Integral) else None


def _scalar_of(value: Any) -> Any:
    """The element of an array, a tensor or a Series of one; anything else as it is."""
    if isinstance(value, (int, float)):
        return value
    if not hasattr(value, "item"):
        return value.as_py() if hasattr(value, "as_py") else value  # as_py: pyarrow's
    try:
        return value.item()
    except (ValueError, RuntimeError):  # several elements, or none
        return value


def at_least(least: int, name: str, value: Any) -> int:
    """``value`` as an int; ``ValueError`` names the argument where it is no whole number from ``least`` on."""
    number = whole_number_of(value)
    if number is None or number < least:
        raise ValueError(f"{name}={value!r}: a whole number, at least {least}, is needed")
    return number


def one_of(choices: Sequence[str], name: str, value: Any) -> str:
    """``value``, which is one of the ``choices``; ``ValueError`` names the argument and the choices where it is not."""
    require_choice(name, value, choices)
    return str(value)
