"""The reason why something cannot be compiled or recorded."""

from __future__ import annotations


class CompileError(RuntimeError):
    """A computation cannot be compiled here; the message is the reason."""


def first_line(error: Exception) -> str:
    """The first line of the message: torch's go on for pages."""
    return next(iter(str(error).strip().splitlines()), "")
