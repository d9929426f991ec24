"""The ``ppox`` command, also ``python -m sb3_ppo_ext_zoo``: rl_zoo3's scripts with PPOX in them."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sb3_ppo_ext_zoo.arguments import (
    LOGS,
    command_line,
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


def train(arguments: Sequence[str]) -> None:
    """rl_zoo3's training, with ``ppox.yml`` as the default settings."""
    require_ppox("train", arguments)
    _train("train", arguments)


def optimize(arguments: Sequence[str]) -> None:
    """rl_zoo3's Optuna search, over PPOX's knobs."""
    require_ppox("optimize", arguments)
    _train("optimize", ["--optimize-hyperparameters", *arguments])


def _train(command: str, arguments: Sequence[str]) -> None:
    from sb3_ppo_ext.distributed.group import join_processes
    from sb3_ppo_ext.distributed.processes import ended_by_all
    from sb3_ppo_ext_zoo.experiment import experiments_of, install
    from sb3_ppo_ext_zoo.processes import of_this_process, quiet_unless_first
    from sb3_ppo_ext_zoo.recipes import recipe_option
    from sb3_ppo_ext_zoo.resume import run_options
    from sb3_ppo_ext_zoo.vector_environments import vec_env_as_setting

    processes = join_processes()
    arguments = of_this_process(command, arguments, processes)
    arguments, run = run_options(command, arguments)
    arguments, recipe = recipe_option(command, arguments)
    if processes.rank == 0:
        warn_of_idle_options(command, arguments)
    arguments = vec_env_as_setting(command, joined(command, arguments))
    register()
    install()
    from rl_zoo3.train import train as zoo_train

    line = command_line(f"ppox {command}", ["--algo", NAME, *quote_texts(arguments)])
    with line, experiments_of(run, recipe), quiet_unless_first(processes), ended_by_all(processes):
        zoo_train()


def enjoy(arguments: Sequence[str]) -> None:
    """rl_zoo3's evaluation of what ``train`` saved."""
    require_ppox("enjoy", arguments)
    require_no_contradiction("enjoy", arguments)
    register()
    from rl_zoo3.enjoy import enjoy as zoo_enjoy

    from sb3_ppo_ext_zoo.resume import playing, run_options

    arguments, run = run_options("enjoy", arguments)
    line = ["--algo", NAME, "--folder", LOGS, *joined("enjoy", arguments)]
    with command_line("ppox enjoy", line), playing(run):
        zoo_enjoy()


def record_video(arguments: Sequence[str]) -> None:
    """rl_zoo3's video of what ``train`` saved."""
    require_ppox("record-video", arguments)
    require_no_contradiction("record-video", arguments)
    register()
    from sb3_ppo_ext_zoo.resume import playing, run_options

    arguments, run = run_options("record-video", arguments)
    line = ["--algo", NAME, "--folder", LOGS, *joined("record-video", arguments)]
    with command_line("ppox record-video", line), playing(run):
        runpy.run_module("rl_zoo3.record_video", run_name="__main__")  # it is a script without a function


def plot(arguments: Sequence[str]) -> None:
    """rl_zoo3's figures."""
    from sb3_ppo_ext_zoo.plots import plot as draw

    draw(arguments)


COMMANDS = {
    "train": Command(
        train,
        "train with the settings of ppox.yml (or of --recipe NAME, or -conf FILE)",
        "ppox train --env CartPole-v1 -P -tb tb",
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"ppox: {name!r} is no command; the commands are {', '.join(COMMANDS)}\n\n{usage()}", file=sys.stderr)
        return 2
    # `python -m` adds this folder too: it has the user's environments and policies (--gym-packages, policy: my.Policy).
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    COMMANDS[name].run(rest)
    return 0
