"""Packages that only parts of this one need: where they are missing, the error has the line that installs them."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def require_packages(what: str, install: str, *names: str) -> None:
    """``ImportError`` where one of the packages is missing that ``what`` needs; none of them is imported.

    ``install`` is what ``pip install`` is to be given, ``"sb3_ppo_ext[lm]"`` with its quotes for example.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{what} needs {' and '.join(missing)}, which cannot be found. Install with\n  pip install {install}"
        )


def optional_package(name: str, what: str, install: str) -> ModuleType:
    """The module, imported now; ``ImportError`` with the remedy where it is missing, or cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{what} needs {package}, which cannot be imported ({error}). Install with\n  pip install {install}"
        ) from error
