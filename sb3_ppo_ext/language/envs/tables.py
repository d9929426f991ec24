"""Prompts that come with their columns: a Dataset, a DataFrame, a JSONL file or a list of rows."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sb3_ppo_ext.language.inputs import in_order

Columns = dict[str, list[Any]]


def from_table(prompts: Any, prompt_column: str) -> tuple[Any, Columns]:
    """The prompts of a table and its other columns, all by position; anything else as it is, without columns."""
    table = table_of(prompts)
    if table is None:
        return prompts, {}
    if prompt_column not in table:
        raise ValueError(
            f"the table has no column {prompt_column!r} of prompts; its columns are "
            f"{', '.join(map(repr, table))}: name one of them, as prompt_column={next(iter(table), '...')!r}"
        )
    return table.pop(prompt_column), table


def table_of(source: Any) -> Columns | None:
    """Name -> values by position; None where ``source`` is no table."""
    if isinstance(source, Path) or (isinstance(source, str) and source.endswith(".jsonl")):
        return _columns_of_rows(_json_lines(Path(source)))
    if hasattr(source, "column_names"):
        return _columns_of_dataset(source)
    if hasattr(source, "columns") and hasattr(source, "__getitem__"):  # pandas, polars
        return {name: _values(source, name) for name in source.columns if isinstance(name, str)}
    if isinstance(source, list) and source and _is_row(source[0]):
        return _columns_of_rows(source)
    return None


def _is_row(value: Any) -> bool:
    return isinstance(value, Mapping) and "role" not in value  # a chat message is none


def _columns_of_dataset(source: Any) -> Columns:
    """The columns of a ``datasets.Dataset`` or a table of pyarrow."""
    if isinstance(source.column_names, Mapping):
        splits = ", ".join(map(repr, source.column_names))
        raise ValueError(f"prompts is a {type(source).__name__} of several splits; pass one of them: {splits}")
    if not hasattr(source, "__len__"):
        raise ValueError(
            f"prompts is a {type(source).__name__}, which has no length: pass its first rows, as list(dataset.take(n))"
        )
    return {name: _values(source, name) for name in source.column_names}


def _values(source: Any, name: str) -> list[Any]:
    column = source[name]
    values = in_order(column)
    if values is None:
        raise ValueError(f"column {name!r} of the table is {reprlib.repr(column)}: one value per prompt is needed")
    return values


def _columns_of_rows(rows: list[Any]) -> Columns:
    """The columns of rows that are mappings; None where a row lacks a name that another has."""
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number} is {reprlib.repr(row)}; a mapping, column -> value, is needed")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _json_lines(path: Path) -> list[Any]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: {error}; one JSON object per line is needed") from error
    if not rows:
        raise ValueError(f"{path} has no rows: one JSON object per line is needed")
    return rows
