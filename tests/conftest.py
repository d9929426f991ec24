"""One thread per test process: the suite runs in parallel, and the small networks of the tests gain nothing by more.

Compiled libraries are kept in the checkout, from run to run, and not among the user's own. Loggers for several files.
"""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.logger import Logger, configure
from torch.distributions import Distribution

from sb3_ppo_ext.objective.registry import KL_ESTIMATORS, SURROGATES, VALUE_CLIPS, VALUE_ERRORS, Registry
from tests.traced_graphs import run_as_traced

torch.set_num_threads(1)
if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until everything is imported: a fifth of that time.
os.environ.setdefault("SB3_PPO_EXT_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "sb3_ppo_ext"))
# Ray's workers stand back behind every other process of the machine, the other tests among them, for which tests wait.
os.environ.setdefault("RAY_worker_niceness", "0")
# The code that calls the kernels takes most of the compiler's time; the kernels themselves are optimised as for users.
os.environ.setdefault("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")


def pytest_collection_finish() -> None:
    """What is imported lives as long as the process: no search for garbage goes through it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _validated_distributions() -> Iterator[None]:
    """``torch.compile`` switches the checks of torch.distributions off for good; each test is to begin with them."""
    Distribution.set_default_validate_args(True)
    yield


@pytest.fixture
def compiler() -> None:
    """What inductor compiles with."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except RuntimeError as error:
        pytest.skip(f"no C++ compiler here: {error}")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs run as they were traced, without a compiler, for what does not depend on the compiler's work: when they
    are made, what they are given, what becomes of their results.
    """

    run_as_traced(monkeypatch)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Ray with two workers, as ``RayVecEnv`` connects to it; the same for all tests of a process."""
    from sb3_ppo_ext.vec_env.remote.arguments import imported_ray

    ray = pytest.importorskip("ray")
    soon = {"kill_worker_timeout_milliseconds": 100}  # a worker that is to end has 5 s otherwise
    small = partial(ray.init, num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=soon)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(ray, "init", small)
        handler = signal.getsignal(signal.SIGTERM)
        imported_ray()
        signal.signal(signal.SIGTERM, handler)  # Ray's ends the process with another status than that of the signal
    yield ray
    ray.shutdown()


@pytest.fixture
def objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    registries: tuple[Registry[Any], ...] = (SURROGATES, KL_ESTIMATORS, VALUE_ERRORS, VALUE_CLIPS)
    for registry in registries:
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.fixture
def logging_to() -> Iterator[Callable[..., Logger]]:
    """Makes loggers, and closes their files after the test."""
    loggers: list[Logger] = []

    def logging_to(folder: Path, *formats: str) -> Logger:
        loggers.append(configure(str(folder), list(formats)))
        return loggers[-1]

    yield logging_to
    for logger in loggers:
        logger.close()


@pytest.fixture
def recorded(logging_to: Callable[..., Logger]) -> Callable[..., Logger]:
    """Makes loggers in which an update is recorded and not yet dumped."""

    def recorded(folder: Path, *formats: str) -> Logger:
        logger = logging_to(folder, *formats)
        logger.record("train/loss", 1.5)
        logger.record("train/n_updates", 10, exclude="tensorboard")
        logger.record_mean("train/reward", 2.0)
        return logger

    return recorded
