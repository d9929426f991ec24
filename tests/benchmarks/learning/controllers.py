"""The controllers that several arms have, as plain data."""

from __future__ import annotations

from typing import Any

STEERED: dict[str, Any] = {
    "adaptive_kl": {
        **{"start": 3e-4, "target": 0.015, "bounds": [5e-5, 1e-3], "every": "epoch"},
        "law": {"threshold": {"margin": 2.0, "factor": 1.5}},
    }
}


def steered(**changes: Any) -> dict[str, Any]:
    """The controller of the rate, changed in what is named."""
    return {"adaptive_kl": {**STEERED["adaptive_kl"], **changes}}


def penalty(target: float) -> dict[str, Any]:
    """The PPO paper's rule for the penalty: from 1, doubled above 1.5 times the target, halved below its 1.5th part."""
    return {"adaptive_kl": {"start": 1.0, "target": target}}
