"""Unknown keyword arguments, reported for the class that the user named, and choices that are none of the allowed."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

Init = TypeVar("Init", bound=Callable[..., None])

BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def named_arguments(*functions: Callable[..., Any]) -> list[str]:
    """The names of the arguments that these functions take by keyword, each once."""
    parameters = [entry for function in functions for entry in inspect.signature(function).parameters.values()]
    return list(dict.fromkeys(entry.name for entry in parameters if entry.kind in BY_KEYWORD and entry.name != "self"))


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> TypeError:
    """The error for an argument that ``owner`` does not have; it names the nearest of the ``known`` ones, or all."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
    return TypeError(f"{owner} has no argument {name!r}; {hint}")


def refuse_unknown(owner: str, arguments: Iterable[str], known: Iterable[str]) -> None:
    """``TypeError`` for the first of the ``arguments``' names that is not among the ``known`` ones."""
    names = list(known)
    for name in arguments:
        if name not in names:
            raise unknown_argument(owner, name, names)


def accepts_only(*others: Callable[..., Any]) -> Callable[[Init], Init]:
    """Makes an ``__init__`` refuse what neither it nor the ``others``, to which it passes the rest on, has.

    A check within ``__init__`` would come too late: Python would first report the required argument that the
    misspelled one was meant to be.
    """

    def decorator(init: Init) -> Init:
        known = named_arguments(init, *others)

        @functools.wraps(init)
        def checked(self: Any, *arguments: Any, **options: Any) -> None:
            refuse_unknown(type(self).__name__, options, known)
            init(self, *arguments, **options)

        return cast(Init, checked)

    return decorator


def require_choice(name: str, value: object, allowed: Iterable[object]) -> None:
    """``ValueError`` unless ``value``, the argument ``name``, is among the ``allowed`` ones."""
    choices = list(allowed)
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):  # 1 is not True
        raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, choices))} is needed")
