"""The ``ppox`` command, also ``python -m sb3_ppo_ext_zoo``: rl_zoo3's scripts with PPOX in them."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from sb3_ppo_ext_zoo.arguments import (
    LOGS,
    joined,
    quote_texts,
    require_no_contradiction,
    require_ppox,
    warn_of_idle_options,
)
from sb3_ppo_ext_zoo.registration import NAME, register


class Command(NamedTuple):
    """One word after ``ppox``."""

    run: Callable[[Sequence[str]], None]
    summary: str
    example: str


def train(given: Sequence[str]) -> None:
    """rl_zoo3's training, with ``ppox.yml`` as the default settings."""
    require_ppox("train", given)
    _train("train", given)


def optimize(given: Sequence[str]) -> None:
    """rl_zoo3's Optuna search, over PPOX's knobs."""
    require_ppox("optimize", given)
    _train("optimize", ["--optimize-hyperparameters", *given])


def _train(command: str, given: Sequence[str]) -> None:
    from sb3_ppo_ext_zoo.experiment import install
    from sb3_ppo_ext_zoo.vector_environments import vec_env_as_setting

    warn_of_idle_options(command, given)
    given = vec_env_as_setting(command, joined(command, given))
    register()
    install()
    from rl_zoo3.train import train as zoo_train

    with command_line(f"ppox {command}", ["--algo", NAME, *quote_texts(given)]):
        zoo_train()


def enjoy(given: Sequence[str]) -> None:
    """rl_zoo3's evaluation of what ``train`` saved."""
    require_ppox("enjoy", given)
    require_no_contradiction("enjoy", given)
    register()
    from rl_zoo3.enjoy import enjoy as zoo_enjoy

    with command_line("ppox enjoy", ["--algo", NAME, "--folder", LOGS, *joined("enjoy", given)]):
        zoo_enjoy()


def record_video(given: Sequence[str]) -> None:
    """rl_zoo3's video of what ``train`` saved."""
    require_ppox("record-video", given)
    require_no_contradiction("record-video", given)
    register()
    with command_line("ppox record-video", ["--algo", NAME, "--folder", LOGS, *joined("record-video", given)]):
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")  # it is a script without a function


def plot(given: Sequence[str]) -> None:
    """rl_zoo3's figures."""
    from sb3_ppo_ext_zoo.plots import plot as draw  # pandas and seaborn take seconds to import

    draw(given)


COMMANDS = {
    "train": Command(
        train, "train with the settings of ppox.yml (or of -conf FILE)", "ppox train --env CartPole-v1 -P -tb tb"
    ),
    "enjoy": Command(enjoy, "evaluate what train saved", "ppox enjoy --env CartPole-v1 --no-render -n 5000"),
    "record-video": Command(record_video, "film what train saved", "ppox record-video --env CartPole-v1 -n 500"),
    "optimize": Command(
        optimize,
        "search for settings with Optuna",
        "ppox optimize --env CartPole-v1 --n-trials 50 --study-name cartpole --storage sqlite:///cartpole.db",
    ),
    "plot": Command(plot, "draw learning curves and tables", "ppox plot train -e CartPole-v1 --save curve.png"),
}


def usage() -> str:
    """The commands, each with one example."""
    lines = ["usage: ppox COMMAND ...", "", "PPOX through rl_zoo3; --algo ppox is implied.", ""]
    for name, command in COMMANDS.items():
        lines += [f"  {name:<13} {command.summary}", f"  {'':<13}   {command.example}", ""]
    return "\n".join([*lines, "`ppox COMMAND --help` lists the options of one command."])


@contextlib.contextmanager
def command_line(program: str, arguments: Sequence[str]) -> Iterator[None]:
    """rl_zoo3's scripts read ``sys.argv``; it is put back afterwards."""
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        yield
    finally:
        sys.argv = before


def main(given: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    given = list(sys.argv[1:] if given is None else given)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    name, *rest = given
    if name not in COMMANDS:
        print(f"ppox: {name!r} is no command; one of {', '.join(COMMANDS)} is needed\n\n{usage()}", file=sys.stderr)
        return 2
    # As with `python -m`: the user's environments and policies (--gym-packages, policy: my.Policy) lie here.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    COMMANDS[name].run(rest)
    return 0
