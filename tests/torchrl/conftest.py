"""Importing torchrl switches the argument checks of ``torch.distributions`` off, and dynamo cannot trace them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from torch.distributions import Distribution


@pytest.fixture(autouse=True)
def as_torchrl_leaves_it() -> Iterator[None]:
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    yield
    Distribution.set_default_validate_args(before)
