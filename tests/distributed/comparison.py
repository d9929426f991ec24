"""The results of one process beside those of several."""

from __future__ import annotations

import numpy as np

from tests.distributed.jobs import Result


def differences(alone: Result, ranks: list[Result]) -> list[str]:
    """What differs between one process and several, or between two of these."""
    found = []
    first = ranks[0]
    for rank in ranks[1:]:
        for name, tensor in rank["parameters"].items():
            if not tensor.equal(first["parameters"][name]):
                found.append(f"{name} differs between ranks")
        found += [key for key in ("knobs", "counts", "steps", "episodes") if rank[key] != first[key]]
    for name, tensor in alone["parameters"].items():
        error = (tensor.double() - first["parameters"][name].double()).abs().max().item()
        if error > 1e-6:
            found.append(f"{name} by {error:.1e}")
    found += [key for key in ("counts", "steps") if alone[key] != first[key]]
    if not np.allclose(alone["episodes"], first["episodes"], atol=1e-5):  # in the same order
        found.append("episodes")
    for key, value in {**alone["knobs"], **alone["log"]}.items():
        theirs = {**first["log"], **first["knobs"]}.get(key)
        if theirs is None or not np.isclose(value, theirs, rtol=1e-4, atol=1e-6, equal_nan=True):
            found.append(f"{key}: {value} and {theirs}")
    return found
