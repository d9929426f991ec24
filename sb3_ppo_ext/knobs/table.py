"""Each knob in a single entry, which parser, controllers, engines, charts and TorchRL read.

A new knob is an entry in ``KNOBS`` and, in ``objective/terms.py``, a field of ``KnobValues`` and its place in a term.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class KnobEntry:
    """One argument of PPOX that may change while it trains.

    ``smallest`` is the least number allowed; with ``optional``, None is allowed too and switches the knob off.
    ``bounds`` are those of a controller for which the user named none; None: within a factor 1000 of its start.
    ``grows_with`` names the measured quantities ("kl", "clip_fraction", "ref_kl", "kl_std") of which too much makes the
    knob grow; it shrinks with every other. ``kl`` is the quantity that ``AdaptiveKL`` measures for it.

    ``double`` knobs are added or clamped and count in the precision of Python's numbers; the others are multiplied into
    a loss and rounded to its precision first: as torch does with a Python number in either place, so that the eager
    update and a graph agree. ``chart`` is the title of its chart in TensorBoard. ``torchrl`` are TorchRL's names for
    it; where ClipPPOLoss has no such coefficient, ``PPOXLoss`` takes it under the knob's own name.

    ``added`` knobs are PPOX's own: it takes them as keyword arguments with that ``default``, and ``meaning`` is their
    line in its documentation. The others are arguments of Stable-Baselines3's PPO.
    """

    name: str
    chart: str
    torchrl: tuple[str, ...]
    smallest: float = 0.0
    optional: bool = False
    bounds: tuple[float, float] | None = None
    grows_with: frozenset[str] = frozenset()
    kl: str = "kl"
    double: bool = False
    added: bool = False
    default: float | None = 0.0
    meaning: str = ""


CLIP_BOUNDS = (0.01, 0.5)  # 1 - clip stays well above 0
CLIP_CHART = "Clip range, and samples outside it"
PENALTY_CHART = "Weight of the KL penalty"

_ENTRIES = (
    # The bounds are those of rsl_rl (algorithms/ppo.py).
    KnobEntry("learning_rate", "Learning rate", ("lr",), bounds=(1e-5, 1e-2), double=True),
    KnobEntry(
        "clip_range",
        CLIP_CHART,
        ("clip_epsilon", "clip_epsilon_low"),
        bounds=CLIP_BOUNDS,
        grows_with=frozenset({"clip_fraction"}),  # a wider range lets fewer ratios out
        double=True,
    ),
    KnobEntry(
        "clip_range_high",
        CLIP_CHART,
        ("clip_epsilon_high",),
        optional=True,
        bounds=CLIP_BOUNDS,
        grows_with=frozenset({"clip_fraction"}),
        double=True,
        added=True,
        default=None,
        meaning="the upper clip range where it differs from the lower, or None",
    ),
    # Stable-Baselines3 itself asserts that a number here is above 0.
    KnobEntry(
        "clip_range_vf", "Clip range of the value", ("clip_value",), smallest=-math.inf, optional=True, double=True
    ),
    # An entropy bonus may be negative (a penalty), as in Stable-Baselines3.
    KnobEntry("ent_coef", "Weight of the entropy", ("entropy_coeff",), smallest=-math.inf),
    KnobEntry("vf_coef", "Weight of the value loss", ("critic_coeff",)),
    KnobEntry(
        "kl_coef",
        PENALTY_CHART,
        ("kl_coef",),
        grows_with=frozenset({"kl", "clip_fraction"}),
        added=True,
        meaning="weight of KL(old || new), in nats per action, in the loss: PPO with a KL penalty, or clip + penalty",
    ),
    KnobEntry(
        "ref_kl_coef",
        PENALTY_CHART,
        ("ref_kl_coef",),
        grows_with=frozenset({"kl", "ref_kl", "clip_fraction"}),
        kl="ref_kl",
        added=True,
        meaning="weight of the KL to a frozen reference policy; for policies that have one (language models)",
    ),
    KnobEntry(
        "divergence_limit",
        "Limit of the divergence",
        ("divergence_limit",),
        optional=True,
        grows_with=frozenset({"clip_fraction"}),
        double=True,
        added=True,
        default=None,
        meaning="the divergence beyond which the surrogates that measure it hold a sample back; None: their default",
    ),
    KnobEntry(
        "kl_coef_std",
        "Weight of the deviation's KL",
        ("kl_coef_std",),
        optional=True,
        grows_with=frozenset({"kl_std", "clip_fraction"}),
        kl="kl_std",
        added=True,
        default=None,
        meaning="weight of the KL that a Gaussian's deviation makes; kl_coef weighs that of its mean then; or None",
    ),
)
KNOBS: dict[str, KnobEntry] = {entry.name: entry for entry in _ENTRIES}
ADDED: dict[str, float | None] = {entry.name: entry.default for entry in _ENTRIES if entry.added}


def entry_of(knob: str) -> KnobEntry:
    """The entry of that name; ``ValueError`` with the known names where there is none."""
    if knob not in KNOBS:
        raise ValueError(f"{knob!r} is no knob; there are {', '.join(KNOBS)}")
    return KNOBS[knob]


def is_on(knob: object) -> bool:
    """True where a knob is or may become another number than 0; None and 0 have no effect."""
    return knob is not None and (callable(knob) or knob != 0)
