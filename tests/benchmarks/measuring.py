"""What the benchmarks share: the machine, turns and medians, one rollout with its update, fresh processes, tables.

Only the standard library is imported at the top: a fresh process times the import of everything else.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

ROOT = Path(__file__).parents[2]

# The environment variables that say where compiled graphs are kept.
CACHE_VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "SB3_PPO_EXT_CACHE_DIR")

Measured = TypeVar("Measured")


class Seconds(NamedTuple):
    """Of one ``learn()`` over one rollout, and of the update in it."""

    learn: float
    train: float


Turn = Callable[[], Seconds]


def timed(call: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(repeats: int, sides: Mapping[str, Callable[[], Measured]]) -> dict[str, list[Measured]]:
    """What each side measured, the sides taking turns, there and back: the place in a turn matters too."""
    measured: dict[str, list[Measured]] = {name: [] for name in sides}
    for turn in range(repeats):
        for name in sides if turn % 2 == 0 else reversed(list(sides)):
            measured[name].append(sides[name]())
    return measured


def medians(samples: Mapping[str, Sequence[Seconds]]) -> dict[str, Seconds]:
    """Of each side, and of ``learn`` and ``train`` each."""
    return {name: Seconds(*map(statistics.median, zip(*turns, strict=True))) for name, turns in samples.items()}


def one_rollout(model: OnPolicyAlgorithm, warm_up: int = 2) -> Turn:
    """A turn of the model: ``learn()`` over one rollout and its update. The first calls, which compile, are made here.

    ``train`` is timed inside ``learn()``, where an algorithm may have set the number of threads for it.
    """
    steps = model.n_steps * model.n_envs
    train = model.train
    updates: list[float] = []
    setattr(model, "train", lambda: updates.append(timed(train)))  # noqa: B010  # mypy: a method is not assigned to

    def turn() -> Seconds:
        learn = timed(lambda: model.learn(steps, reset_num_timesteps=False))
        return Seconds(learn, updates[-1])

    for _ in range(warm_up):
        turn()
    return turn


@contextmanager
def clock_on_steps(env: VecEnv) -> Iterator[list[float]]:
    """Collects the seconds that the environments take until the end of the block, without their wrappers' time.

    They are the ``step`` and ``reset`` of each environment in a ``DummyVecEnv``, else ``step_async`` and ``step_wait``.
    """
    from stable_baselines3.common.vec_env import DummyVecEnv

    spent: list[float] = []

    def clocked(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = method(*arguments, **options)
            spent.append(time.perf_counter() - start)
            return result

        return call

    env = env.unwrapped
    layers: list[Any] = env.envs if isinstance(env, DummyVecEnv) else [env]
    names = ("step", "reset") if isinstance(env, DummyVecEnv) else ("step_async", "step_wait")
    for layer, name in itertools.product(layers, names):
        setattr(layer, name, clocked(getattr(layer, name)))
    yield spent
    for layer, name in itertools.product(layers, names):
        delattr(layer, name)


def fresh_process(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Any:
    """What a new interpreter with these arguments prints last, read as JSON."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed; its messages are above")
    return json.loads(done.stdout.splitlines()[-1])


def peak_memory() -> float:
    """MiB of resident memory at this process's peak; not ``ru_maxrss``, which starts at the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def processor() -> tuple[str, str]:
    """The processor's name, and its family and model ("" where not known): the name of a virtual one says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    numbers = (f"{name} {found[name]}" for name in ("cpu family", "model") if name in found)
    return found.get("model name") or platform.processor() or platform.machine(), ", ".join(numbers)


def machine() -> dict[str, str | int]:
    """What the figures depend on."""
    import torch

    return {
        "processor": processor()[0],
        "cores": os.cpu_count() or 0,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }


def machine_line() -> str:
    """The same in a line."""
    found = machine()
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}"
    return f"{found['processor']}, {found['cores']} cores; Python {found['python']}, torch {found['torch']}, {threads}"


class Table:
    """Printed row by row, as the figures come; the first column to the left, the others to the right."""

    def __init__(self, first: str, *columns: str, width: int = 12, first_width: int = 46) -> None:
        self.widths = [max(width, len(column)) for column in columns]
        self.first_width = first_width
        print()
        self.row(first, *columns)
        print("-" * (first_width + sum(self.widths) + 2 * len(columns)))

    def row(self, first: str, *cells: str) -> None:
        """One line."""
        texts = (f"  {cell:>{width}}" for cell, width in zip(cells, self.widths, strict=True))
        print(f"{first:{self.first_width}}{''.join(texts)}".rstrip(), flush=True)


def number(value: float | None) -> str:
    """Three digits, and a dash for what was not measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_json(path: Path | None, figures: Mapping[str, Any]) -> None:
    """With the machine and the command; nowhere where no path was given."""
    if path is not None:
        command = " ".join(["python", "-m", f"tests.benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
        path.write_text(json.dumps({"machine": machine(), "command": command, **figures}, indent=2) + "\n")
