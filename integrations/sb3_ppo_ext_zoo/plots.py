"""``ppox plot``: rl_zoo3's figures of training, of several runs, and from a file of results."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sb3_ppo_ext_zoo.arguments import LOGS, command_line
from sb3_ppo_ext_zoo.registration import NAME


class Figure(NamedTuple):
    """A word after ``ppox plot``: rl_zoo3's function, and the arguments that precede the user's."""

    function: str
    implied: tuple[str, ...]
    summary: str


FIGURES = {
    "train": Figure("plot_train", ("--algo", NAME, "--exp-folder", LOGS), "reward while training, from monitor.csv"),
    "all": Figure(
        "all_plots", ("--algos", NAME, "--exp-folders", LOGS), "evaluations of several runs or algorithms, and a table"
    ),
    "from-file": Figure(
        "plot_from_file", (), "figures from what `ppox plot all --output FILE` wrote, of at least two runs each"
    ),
}


def plot(arguments: Sequence[str]) -> None:
    """Draws one of ``FIGURES``; ``--save FILE`` writes it instead of opening a window."""
    parser = argparse.ArgumentParser(prog="ppox plot", add_help=False, allow_abbrev=False)
    parser.add_argument("figure", choices=FIGURES, nargs="?")
    parser.add_argument("--save", type=Path)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return
    options = parser.parse_args(arguments[:1])
    figure = FIGURES[options.figure]
    parser = argparse.ArgumentParser(prog=f"ppox plot {options.figure}", add_help=False, allow_abbrev=False)
    parser.add_argument("--save", type=Path)
    options, rest = parser.parse_known_args(arguments[1:])
    _draw(parser.prog, figure, rest, options.save)


def _draw(program: str, figure: Figure, arguments: Sequence[str], save: Path | None) -> None:
    import matplotlib

    if save is not None:
        matplotlib.use("Agg")
    import rl_zoo3.plots
    from matplotlib import pyplot

    pyplot.close("all")
    with warnings.catch_warnings(), command_line(program, [*figure.implied, *arguments]):
        if save is not None:  # rl_zoo3 calls show(), at which Agg warns
            warnings.filterwarnings("ignore", message=".*non-interactive.*", category=UserWarning)
        getattr(rl_zoo3.plots, figure.function)()
    if save is not None:
        _save(save)


def _save(path: Path) -> None:
    from matplotlib import pyplot

    numbers = pyplot.get_fignums()
    for number in numbers:
        name = path if len(numbers) == 1 else path.with_stem(f"{path.stem}_{number}")
        pyplot.figure(number).savefig(name)
        print(f"Saved {name}")


def _usage() -> str:
    lines = ["usage: ppox plot FIGURE ... [--save FILE]", ""]
    lines += [f"  {name:<10} {figure.summary}" for name, figure in FIGURES.items()]
    return "\n".join([*lines, "", "`ppox plot FIGURE --help` lists rl_zoo3's options."])
