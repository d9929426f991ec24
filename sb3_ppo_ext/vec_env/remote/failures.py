"""What is raised and warned of: the environment's own errors, and workers that are lost."""

from __future__ import annotations

import pickle

from sb3_ppo_ext.vec_env.remote.packed import Failure, name_of_class


class RayWorkerError(RuntimeError):
    """A worker of a ``RayVecEnv`` that cannot do what it is for; what an environment raised is its cause."""


class RayWorkerWarning(UserWarning):
    """A worker of a ``RayVecEnv`` was lost and replaced."""


def is_one_of(failure: Failure, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether the exception is of one of the classes; by name, for it may be from another process."""
    return any(name_of_class(kind) in failure.kinds for kind in kinds)


def error_of(failure: Failure, worker: str) -> Exception:
    """The exception to raise: a ``RayWorkerError`` that is also of the environment's own class where that can be."""
    where = worker if failure.row is None else f"{worker}: environment {failure.row}"
    name = failure.kinds[0].removeprefix("builtins.")
    text = f"{where} raised {name} in {failure.action}: {failure.text}\n\n{failure.trace}"
    cause = None if failure.error is None else pickle.loads(failure.error)
    if not isinstance(cause, Exception):
        return RayWorkerError(text)
    error = _of_both_classes(cause, text)
    error.__cause__ = cause
    return error


def _of_both_classes(cause: Exception, text: str) -> Exception:
    def show(self: Exception) -> str:
        return text

    methods = {"__init__": lambda self: None, "__str__": show}
    try:
        return type(type(cause).__name__, (RayWorkerError, type(cause)), methods)()  # type: ignore[no-any-return]
    except Exception:  # whatever the class raises that is derived from
        return RayWorkerError(text)
