"""SB3's PPO and PPOX where the policy sees images: a rollout and its update, eager and compiled.

    python -m tests.benchmarks.images [--repeats 7] [--threads N] [--only TEXT] [--json FILE]

SB3, PPOX eager and PPOX compiled take turns, each in a process of its own, for what one of them does to the process's
heap serves the others too. Figures are medians over the turns, and ratios the medians of the turns' own ratios, over
SB3. Compiling is not counted. Torch has the threads it takes by itself unless --threads says otherwise. Environments
cost next to nothing: they hand out images drawn beforehand. --only keeps the rows whose name has TEXT in it. Run it on
a quiet machine; it is not part of the test suite.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_ppo_ext import PPOX
from tests.benchmarks.measuring import Seconds, Table, Turn, in_turn, machine_line, number, one_rollout, write_json
from tests.benchmarks.processes import Side

DRAWN = 16  # observations of all environments, one after the other for ever


class Album(VecEnv):
    """The same few observations in turn; a reward that depends on the action; episodes of 100 steps."""

    def __init__(self, space: spaces.Space[Any], n_envs: int) -> None:
        super().__init__(n_envs, space, spaces.Discrete(6))
        space.seed(0)
        drawn = [[space.sample() for _ in range(n_envs)] for _ in range(DRAWN)]
        self.album = [self._stacked(observations) for observations in drawn]
        self.steps = 0

    def _stacked(self, observations: list[Any]) -> Any:
        if isinstance(self.observation_space, spaces.Dict):
            return {key: np.stack([one[key] for one in observations]) for key in self.observation_space.spaces}
        return np.stack(observations)

    def reset(self) -> Any:
        """The first page."""
        return self.album[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Nothing runs until ``step_wait``."""
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """The next page."""
        self.steps += 1
        observation = self.album[self.steps % DRAWN]
        done = np.full(self.num_envs, self.steps % 100 == 0)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        return observation, (self.actions % 3).astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """None of them renders."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """There is nothing to set."""
        raise AttributeError(attr_name)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """There is nothing to call."""
        raise AttributeError(method_name)

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """None of them is."""
        return [False] * self.num_envs


def pixels(height: int, width: int, channels: int) -> spaces.Box:
    return spaces.Box(0, 255, (height, width, channels), np.uint8)


SPACES: dict[str, spaces.Space[Any]] = {
    "36x36x3": pixels(36, 36, 3),
    "84x84x4": pixels(84, 84, 4),
    "dict of 36x36x3 and 8": spaces.Dict({"image": pixels(36, 36, 3), "speed": spaces.Box(-1, 1, (8,), np.float32)}),
}


class Case(NamedTuple):
    """A row."""

    space: str
    n_envs: int
    n_steps: int
    batch_size: int
    n_epochs: int

    @property
    def name(self) -> str:
        return f"{self.space}, {self.n_envs} envs, batch {self.batch_size}"

    @property
    def policy(self) -> str:
        return "MultiInputPolicy" if isinstance(SPACES[self.space], spaces.Dict) else "CnnPolicy"


CASES = (
    *(Case("36x36x3", 16, 64, batch_size, 4) for batch_size in (32, 64, 256)),
    *(Case("84x84x4", 8, 32, batch_size, 2) for batch_size in (32, 64, 256)),
    *(Case("dict of 36x36x3 and 8", 16, 64, batch_size, 4) for batch_size in (64, 256)),
)
SIDES: dict[str, tuple[type[PPO], dict[str, Any]]] = {
    "SB3": (PPO, {}),
    "eager": (PPOX, {"compile": False}),
    "compiled": (PPOX, {"compile": True}),
}


def one_side(case: Case, side: str, threads: int | None) -> tuple[Turn, None]:
    """What a side's process makes."""
    if threads:
        torch.set_num_threads(threads)
    kind, more = SIDES[side]
    arguments = {name: getattr(case, name) for name in ("n_steps", "batch_size", "n_epochs")}
    env = Album(SPACES[case.space], case.n_envs)
    return one_rollout(kind(case.policy, env, seed=0, device="cpu", **arguments, **more)), None


def measured(case: Case, repeats: int, threads: int | None) -> dict[str, list[Seconds]]:
    """The turns of all sides."""
    sides = {name: Side(one_side, case, name, threads) for name in SIDES}
    for side in sides.values():
        side.ready()
    samples = in_turn(repeats, {name: side.turn for name, side in sides.items()})
    for side in sides.values():
        side.close()
    return samples


def columns(samples: dict[str, list[Seconds]], part: str) -> Iterator[str]:
    """Milliseconds of SB3, and of each other side with its ratio."""
    seconds = {side: [getattr(turn, part) for turn in turns] for side, turns in samples.items()}
    yield number(1e3 * statistics.median(seconds["SB3"]))
    for side in list(SIDES)[1:]:
        ratios = [sb3 / one for sb3, one in zip(seconds["SB3"], seconds[side], strict=True)]
        yield number(1e3 * statistics.median(seconds[side]))
        yield f"{statistics.median(ratios):.2f}"


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", default="", metavar="TEXT")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.threads:
        torch.set_num_threads(options.threads)
    print(machine_line())
    heads = [head for side in list(SIDES)[1:] for head in (f"{side} ms", "over SB3")]
    table = Table("", "SB3 ms", *heads, width=9)
    figures: dict[str, Any] = {}
    for case in CASES:
        if options.only not in case.name:
            continue
        samples = measured(case, options.repeats, options.threads)
        figures[case.name] = {side: [turn._asdict() for turn in turns] for side, turns in samples.items()}
        for part in ("learn", "train"):
            table.row(f"{case.name}: {part}()", *columns(samples, part))
        write_json(options.json, {"images": figures})  # what there is, should the run be ended early


if __name__ == "__main__":
    main()
