"""Pieces of a user's code that failed on a response: counted, and each warned of once."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field


@dataclass
class Failures:
    """How often each of several functions has failed, by its name."""

    counts: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The failures of all of them."""
        return sum(self.counts.values())

    def add(self, name: str, error: Exception, consequence: str, *, case: str = "", stacklevel: int = 3) -> None:
        """Counts a failure of the function called ``name``; the first is a warning that says what follows from it."""
        self.counts[name] = self.counts.get(name, 0) + 1
        if self.counts[name] == 1:
            warnings.warn(
                f"{name} failed{case} ({type(error).__name__}: {error}): {consequence}. Further failures of it are "
                "counted without a warning",
                stacklevel=stacklevel,
            )
