"""One thread per test process: the suite runs in parallel, and the small networks of the tests gain nothing by more."""

from collections.abc import Iterator

import pytest
import torch
from torch.distributions import Distribution

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _validated_distributions() -> Iterator[None]:
    """``torch.compile`` switches the checks of torch.distributions off for good; each test is to begin with them."""
    Distribution.set_default_validate_args(True)
    yield
