"""Objectives by name: what is registered under each, PPOX's own and a user's (see ``registration``)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor

# What a surrogate calls the clip range's two sides -> the arguments of PPOX they come from.
SIDES = {"low": ("clip_range",), "high": ("clip_range", "clip_range_high")}
BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

# What a surrogate may take besides knobs: one number per sample.
OF_SAMPLES = ("action_log_prob", "kl")


@dataclass(frozen=True, eq=False)  # equal only to itself, as the function is: graphs are remembered by it
class Registered:
    """A name and the function behind it."""

    name: str
    function: Callable[..., Tensor]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The function's parameters, by name."""
        return dict(inspect.signature(self.function).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The function's result."""
        return self.function(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class Surrogate(Registered):
    """A policy loss of log-ratio and advantage, and of the knobs and choices among its further parameters.

    With ``keeps_gradient`` a ratio outside the clip range still has a gradient; with ``divides_by_clip_range`` the clip
    range must not reach 0; with ``needs_probabilities`` log-probabilities must be those of discrete actions, not
    densities; with ``weighs_kl`` the surrogate contains the penalty that ``kl_coef`` weighs.
    """

    keeps_gradient: bool = True
    divides_by_clip_range: bool = False
    needs_probabilities: bool = False
    weighs_kl: bool = False

    @property
    def inputs(self) -> dict[str, bool]:
        """Name -> whether it has no default, of the parameters after the two tensors, ``mask`` and ``reduce`` aside.

        What ``functools.partial`` has bound is none of them.
        """
        bound = self.function.keywords if isinstance(self.function, partial) else {}
        further = list(self.parameters.values())[2:]
        named = [parameter for parameter in further if parameter.kind in BY_NAME]
        others = {"mask", "reduce", *bound}
        return {
            parameter.name: parameter.default is parameter.empty for parameter in named if parameter.name not in others
        }

    @property
    def measures_kl(self) -> bool:
        """True where the surrogate takes the exact KL of every state."""
        return "kl" in self.inputs

    @property
    def uses(self) -> frozenset[str]:
        """The arguments of PPOX that have an effect on this surrogate."""
        arguments = (name for name in self.inputs if name not in OF_SAMPLES)
        return frozenset(argument for name in arguments for argument in SIDES.get(name, (name,)))


@dataclass(frozen=True, eq=False)
class ErrorOfValue(Registered):
    """The error of a value, slot by slot.

    ``averages``: the function can take the mean over all slots itself, in a single pass, as those of torch can.
    """

    averages: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "averages", "reduction" in self.parameters)

    def __call__(self, value: Tensor, target: Tensor) -> Tensor:
        """One number per slot."""
        if self.averages:
            return self.function(value, target, reduction="none")
        return self.function(value, target)


Entry = TypeVar("Entry", bound=Registered)


class Registry(Generic[Entry]):
    """Name -> entry, for one argument of PPOX; ``besides`` are names which that argument takes and others compute."""

    def __init__(self, argument: str, besides: tuple[str, ...] = ()) -> None:
        self.argument = argument
        self.besides = besides
        self._entries: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __getitem__(self, name: str) -> Entry:
        if name not in self:
            self.require(name, besides=())
        return self._entries[name]

    def require(self, name: object, argument: str | None = None, besides: tuple[str, ...] | None = None) -> None:
        """``ValueError`` for a name that ``argument`` (by default the registry's) does not take, with those it does."""
        besides = self.besides if besides is None else besides
        if name in self or name in besides:
            return
        known = ", ".join(map(repr, (*besides, *self)))
        raise ValueError(
            f"{argument or self.argument}={name!r}: one of {known} is needed; to use your own, first import the module "
            f"that registers it with @sb3_ppo_ext.{self.argument}({name!r})"
        )

    def users_of(self, argument: str) -> str:
        """The names of the surrogates that use an argument of PPOX, as the text of an error message."""
        entries = [entry for entry in self._entries.values() if isinstance(entry, Surrogate)]
        return " or ".join(f'"{entry.name}"' for entry in entries if argument in entry.uses)

    def add(self, entry: Entry, *, replace: bool) -> None:
        """Puts the entry under its name; ``ValueError`` where another function has it."""
        known = self._entries.get(entry.name)
        if known is not None and vars(known) == vars(entry):
            return  # and stays what graphs are remembered by
        if entry.name in self.besides or (known is not None and not replace):
            owner = "PPOX itself" if known is None else place_of(known.function)
            raise ValueError(
                f"{self.argument} {entry.name!r} is registered already ({owner}); choose another name, or pass "
                "replace=True if this function is to take its place (as where a notebook's cell runs again)"
            )
        self._entries[entry.name] = entry


SURROGATES: Registry[Surrogate] = Registry("surrogate")
KL_ESTIMATORS: Registry[Registered] = Registry("kl_estimator", besides=("exact",))
VALUE_ERRORS: Registry[ErrorOfValue] = Registry("value_error")
VALUE_CLIPS: Registry[Registered] = Registry("value_clip")


def require_fitting(surrogate: str, optional: Mapping[str, Any], *, kl_coef: Any, penalized: bool) -> None:
    """``ValueError`` for one of the ``optional`` arguments that the surrogate has no use for, and for one that weighs
    the KL without a weight; ``penalized`` says whether ``kl_coef`` has any effect.
    """
    for name, value in optional.items():
        if value is not None and name not in SURROGATES[surrogate].uses:
            raise ValueError(
                f"{name}={value!r}: only surrogate={SURROGATES.users_of(name)} has a use for it, "
                f'not "{surrogate}"; pass {name}=None'
            )
    if SURROGATES[surrogate].weighs_kl and not penalized:
        raise ValueError(
            f'kl_coef={kl_coef!r}: surrogate="{surrogate}" draws back by a penalty of this weight; '
            'pass one above 0, as in kl_coef={"adaptive_kl": {"start": 1.0, "target": 0.03, "law": "lagrangian"}}'
        )


def place_of(function: Callable[..., Tensor]) -> str:
    """The module and name of a function, as the text of an error message."""
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', repr(function))}"
