"""Knobs: the arguments of PPOX that may change while it trains, and the one parser of their text and dict forms.

==========================================  =====================================================================
number, also as text                        ``0.2``, ``"1e-4"``
schedule of progress_remaining              ``Cosine(0.2, 0.05)``, ``"cosine:0.2:0.05"``, ``{"cosine": {"start": 0.2}}``
with a horizon of its own                   ``"linear:3e-4:0:horizon=1e6"``
piecewise                                   ``"piecewise:0=0.2:0.5=0.1"``
warm-up joined before any of these          ``"warmup:0.1:cosine:3e-4:0"``
controller                                  ``"adaptive_kl:1.0:0.01"``, ``{"adaptive_kl": {"start": 1, "target": 0.01,
                                            "law": {"threshold": {"margin": 2, "factor": 1.5}}}}``
rl_zoo3's linear schedule to 0              ``"lin_0.2"``
==========================================  =====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from stable_baselines3.common.utils import FloatSchedule

from sb3_ppo_ext.knobs.controllers import AdaptiveClipFraction, AdaptiveKL, Controller
from sb3_ppo_ext.knobs.laws import Lagrangian, Law, Proportional, Threshold
from sb3_ppo_ext.knobs.schedules import Cosine, Exponential, Linear, Piecewise, Warmup, endpoints
from sb3_ppo_ext.knobs.table import entry_of

Knob = float | Callable[[float], float]

FORMS: dict[str, type] = {
    "linear": Linear,
    "cosine": Cosine,
    "exponential": Exponential,
    "piecewise": Piecewise,
    "warmup": Warmup,
    "adaptive_kl": AdaptiveKL,
    "adaptive_clip_fraction": AdaptiveClipFraction,
}
LAWS: dict[str, type] = {"threshold": Threshold, "proportional": Proportional, "lagrangian": Lagrangian}


def parse_knob(name: str, value: object) -> Knob | None:
    """The number, schedule or controller that ``value`` describes; a controller is bound to ``name``.

    Raises ``ValueError`` naming the argument, the value and what is allowed.
    """
    if value is None and entry_of(name).optional:
        return None
    try:
        knob = _knob(value)
        _check_range(name, knob)
    except ValueError as error:
        raise ValueError(f"{name}={value!r}: {error}") from None
    return knob.bind(name) if isinstance(knob, Controller) else knob


def _knob(value: object) -> Knob:
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, Mapping):
        described: Knob = _from_dict(value, FORMS)
        return described
    if isinstance(value, FloatSchedule):  # Stable-Baselines3 wraps clip_range and learning_rate in one
        return _knob(value.value_schedule)
    if callable(value):
        return value
    number = number_in(value)
    if number is None:
        raise ValueError(f"a number, a schedule, a controller, or text or a dict such as {_examples()} is needed")
    return number


def number_in(value: object) -> float | None:
    """A finite number, also from text or a numpy scalar; None for anything else (a bool is no number here)."""
    if isinstance(value, bool) or not (isinstance(value, str) or hasattr(value, "__float__")):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _examples() -> str:
    return '"cosine:0.2:0.05", "warmup:0.1:linear:3e-4:0", {"adaptive_kl": {"start": 1.0, "target": 0.01}}'


def _from_text(text: str) -> Knob:
    number = number_in(text)
    if number is not None:
        return number
    if text.startswith("lin_"):  # rl_zoo3's spelling; rl_zoo3's class is negative where a rollout overshoots
        start = number_in(text.removeprefix("lin_"))
        if start is None:
            raise ValueError('"lin_" is followed by one number, as in "lin_0.2"; or "linear:start:end"')
        return Linear(start)
    name, *rest = text.split(":")
    if name not in FORMS:
        raise ValueError(f"{name!r} is no number and names no schedule or controller; known: {', '.join(FORMS)}")
    if name == "warmup":
        return _warmup_from_text(rest)
    positional = [field for field in rest if "=" not in field]
    pairs = [field.partition("=")[::2] for field in rest if "=" in field]
    named: dict[str, object] = {key: value for key, value in pairs if name != "piecewise" or number_in(key) is None}
    if name == "piecewise":
        named["points"] = [(done, value) for done, value in pairs if number_in(done) is not None]
    described: Knob = _build(name, FORMS, positional, named)
    return described


def _warmup_from_text(rest: list[str]) -> Warmup:
    """``fraction:<any schedule or number>``, where ``start=`` and ``horizon=`` belong to the warm-up."""
    of_warmup = [field for field in rest if field.startswith(("start=", "horizon="))]
    plain = [field for field in rest if field not in of_warmup]
    if len(plain) < 2:
        raise ValueError('a warm-up is "warmup:fraction:schedule", as in "warmup:0.1:cosine:3e-4:0"')
    options = dict(field.partition("=")[::2] for field in of_warmup)
    warmup = _build("warmup", FORMS, [], {"fraction": plain[0], "after": ":".join(plain[1:]), **options})
    assert isinstance(warmup, Warmup)
    return warmup


def _from_dict(form: Mapping[Any, Any], table: dict[str, type]) -> Any:
    if len(form) != 1:
        raise ValueError(f"a dict has exactly one key, one of {', '.join(table)}, not {list(form)}")
    ((name, options),) = form.items()
    if name not in table:
        raise ValueError(f"unknown name {name!r}; known: {', '.join(table)}")
    if not isinstance(options, Mapping):
        raise ValueError(f"the value of {name!r} is {options!r}; a dict of its fields is needed")
    return _build(name, table, [], dict(options))


def _build(name: str, table: dict[str, type], positional: list[str], named: dict[str, object]) -> Any:
    """``table[name]`` from text or plain values; a wrong number or name of fields is a ``ValueError``."""
    cls = table[name]
    allowed = [field.name for field in fields(cls) if field.init]
    unknown = [key for key in named if key not in allowed]
    if unknown or len(positional) > len(allowed):
        raise ValueError(f"{name} takes the fields {', '.join(allowed)}; got {[*positional, *unknown]}")
    values = dict(zip(allowed, positional, strict=False)) | named
    required = [field.name for field in fields(cls) if field.init and _required(field)]
    missing = [key for key in required if key not in values]
    if missing:
        raise ValueError(f"{name} takes the fields {', '.join(allowed)}; missing: {', '.join(missing)}")
    return cls(**{key: _field(key, value) for key, value in values.items()})


def _required(field: Any) -> bool:
    return repr(field.default) == repr(field.default_factory)  # both are dataclasses.MISSING


def _field(key: str, value: object) -> object:
    """One field of a schedule, controller or law, from its text or plain form."""
    if key == "law":
        return _law(value)
    if key == "after":
        after = _knob(value)
        if isinstance(after, Controller):
            raise ValueError("a warm-up is followed by a schedule or a number, not by a controller")
        return after
    if key == "points":
        pairs = value.items() if isinstance(value, Mapping) else value
        return tuple((_field("", done), _field("", level)) for done, level in pairs)  # type: ignore[attr-defined]
    if key == "bounds" and value is not None:
        bounds = value.split(",") if isinstance(value, str) else value
        if not isinstance(bounds, (list, tuple)) or len(bounds) != 2:
            raise ValueError(f"bounds is {value!r}; two numbers [low, high] are needed")
        return tuple(_field("", bound) for bound in bounds)
    number = number_in(value)
    return value if number is None else number


def _law(value: object) -> Law:
    if isinstance(value, Mapping):
        law: Law = _from_dict(value, LAWS)
        return law
    if isinstance(value, str):
        name, *rest = value.split(":")
        if name not in LAWS:
            raise ValueError(f"unknown law {name!r}; known: {', '.join(LAWS)}")
        law = _build(name, LAWS, rest, {})
        return law
    if callable(value):
        return value
    raise ValueError(f"law is {value!r}; one of {', '.join(LAWS)}, as text or a dict")


def _check_range(name: str, knob: Knob) -> None:
    smallest = entry_of(name).smallest
    if isinstance(knob, Controller):
        return  # always above 0
    values = endpoints(knob) if callable(knob) else (knob,)
    for value in values:
        if value < smallest:
            raise ValueError(f"{value} is out of range; at least {smallest} is needed")
