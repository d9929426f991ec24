"""What ``torch.distributions`` keeps inside."""

from __future__ import annotations

from torch.distributions import Distribution


def check_arguments(check: bool) -> bool:
    """Sets whether distributions of this process check their arguments by default; returns what was set before."""
    before: bool = Distribution._validate_args
    Distribution.set_default_validate_args(check)
    return before
