"""One thread per test process: the suite runs in parallel, and the small networks of the tests gain nothing by more.

Compiled libraries are kept in the checkout, from run to run, and not among the user's own.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributions import Distribution

torch.set_num_threads(1)
os.environ.setdefault("SB3_PPO_EXT_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "sb3_ppo_ext"))


@pytest.fixture(autouse=True)
def _validated_distributions() -> Iterator[None]:
    """``torch.compile`` switches the checks of torch.distributions off for good; each test is to begin with them."""
    Distribution.set_default_validate_args(True)
    yield
