"""The command line of ``ppox``: checked and completed before rl_zoo3's parser reads it."""

from __future__ import annotations

import argparse
import ast
import builtins
import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence

from sb3_ppo_ext_zoo.registration import NAME

LOGS = "logs"  # the folder of rl_zoo3's train; its enjoy and record_video read that of downloaded agents

REPEATABLE = (("-params", "--hyperparams"), ("--env-kwargs",), ("--eval-env-kwargs",), ("--gym-packages",))
EXCLUSIVE = (("--load-best", "--load-checkpoint", "--load-last-checkpoint"), ("--deterministic", "--stochastic"))

# Options of rl_zoo3's train.py for one of its two uses, training and search.
OF_SEARCH = (
    *("--n-trials", "--max-total-trials", "--n-jobs", "--sampler", "--pruner", "--n-startup-trials", "--n-evaluations"),
    *("--no-optim-plots", "--optimization-log-path"),
)
OF_TRAINING = ("--save-freq", "--log-interval", "--progress", "-P")
OF_TRACKING = ("--wandb-project-name", "--wandb-entity", "--wandb-group", "--wandb-tags", "-tags")
REPLAY_BUFFER = ("--save-replay-buffer", "--truncate-last-trajectory")


def require_ppox(command: str, arguments: Sequence[str]) -> None:
    """Exits with a message if ``--algo`` names another algorithm."""
    parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False)
    parser.add_argument("--algo", default=NAME)
    algo = parser.parse_known_args(arguments)[0].algo
    if algo != NAME:
        script = command.replace("-", "_").replace("optimize", "train")
        parser.error(
            f"argument --algo: {algo!r} is not PPOX; this command is for {NAME!r}, which is also its default. "
            f"For {algo!r} run: python -m rl_zoo3.{script} --algo {algo}"
        )


def joined(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with each repeated option once, with all its values: rl_zoo3 keeps the last occurrence only."""
    parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False, allow_abbrev=False)
    for names in REPEATABLE:
        parser.add_argument(*names, nargs="+", action="extend", dest=names[0])
    found, rest = parser.parse_known_args(arguments)
    for option, values in vars(found).items():
        rest += [option, *values] if values else []
    return rest


def require_no_contradiction(command: str, arguments: Sequence[str]) -> None:
    """Exits with a message for two options of which rl_zoo3 would ignore one."""
    for options in EXCLUSIVE:
        chosen = [option for option in options if _has(arguments, option)]
        if len(chosen) > 1:
            parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False)
            parser.error(f"argument {chosen[1]}: not allowed with {chosen[0]}; leave one of them out")


def warn_of_idle_options(command: str, arguments: Sequence[str]) -> None:
    """A ``UserWarning`` for each option that has no effect in this command."""
    searching = any(_has(arguments, option) for option in ("--optimize-hyperparameters", "-optimize"))
    idle = {option: "PPOX has no replay buffer" for option in REPLAY_BUFFER}
    if searching:
        idle |= dict.fromkeys(OF_TRAINING, "it is for a training (ppox train), not for the trials of a search")
    else:
        idle |= dict.fromkeys(OF_SEARCH, "it is for a search (ppox optimize)")
    if not _has(arguments, "--track"):
        idle |= dict.fromkeys(OF_TRACKING, "it needs --track")
    for option, reason in idle.items():
        if _has(arguments, option):
            warnings.warn(f"ppox {command}: {option} has no effect: {reason}", stacklevel=2)


def _has(arguments: Sequence[str], option: str) -> bool:
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def quote_texts(arguments: Sequence[str]) -> Iterator[str]:
    """Quotes the texts among ``-params name:value``, because rl_zoo3 evaluates every value as Python.

    ``clip_range:cosine:0.2:0.05`` and ``surrogate:spo`` are text; ``n_steps:64`` and
    ``policy_kwargs:dict(activation_fn=nn.ReLU)`` are Python and stay unchanged.
    """
    in_params = False
    for argument in arguments:
        if argument.startswith("-"):
            in_params = argument in ("-params", "--hyperparams")
        elif in_params and ":" in argument:
            name, value = argument.split(":", 1)
            if not _is_python(value):
                argument = f"{name}:{value!r}"
        yield argument


def _is_python(value: str) -> bool:
    """True if ``value`` is an expression of names that rl_zoo3 has; ``lin_3e-4`` is an expression of ``lin_3e``."""
    import rl_zoo3.utils  # rl_zoo3 evaluates the value in this module

    try:
        nodes = list(ast.walk(ast.parse(value.strip(), mode="eval")))
    except SyntaxError:
        return False
    known = vars(builtins).keys() | vars(rl_zoo3.utils).keys()
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return all(node.id in known | bound for node in nodes if isinstance(node, ast.Name))


@contextlib.contextmanager
def command_line(program: str, arguments: Sequence[str]) -> Iterator[None]:
    """Sets ``sys.argv``, which rl_zoo3's scripts read, until the end of the block."""
    before = sys.argv
    sys.argv = [program, *arguments]
    try:
        yield
    finally:
        sys.argv = before
