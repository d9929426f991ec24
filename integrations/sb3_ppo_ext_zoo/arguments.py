"""What ``ppox`` adds to a command line before rl_zoo3's own parser reads it."""

from __future__ import annotations

import argparse
import ast
import builtins
import warnings
from collections.abc import Iterator, Sequence

from sb3_ppo_ext_zoo.registration import NAME

LOGS = "logs"  # where rl_zoo3's train writes; its enjoy and record_video look for downloaded agents instead

REPEATABLE = (("-params", "--hyperparams"), ("--env-kwargs",), ("--eval-env-kwargs",), ("--gym-packages",))
EXCLUSIVE = (("--load-best", "--load-checkpoint", "--load-last-checkpoint"), ("--deterministic", "--stochastic"))

# Options of rl_zoo3's train.py that it reads in one of its two uses only.
OF_SEARCH = (
    *("--n-trials", "--max-total-trials", "--n-jobs", "--sampler", "--pruner", "--n-startup-trials", "--n-evaluations"),
    *("--no-optim-plots", "--optimization-log-path"),
)
OF_TRAINING = ("--save-freq", "--log-interval", "--progress", "-P")
OF_TRACKING = ("--wandb-project-name", "--wandb-entity", "--wandb-group", "--wandb-tags", "-tags")
REPLAY_BUFFER = ("--save-replay-buffer", "--truncate-last-trajectory")


def require_ppox(command: str, given: Sequence[str]) -> None:
    """Leaves with a message if ``--algo`` names another algorithm."""
    parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False)
    parser.add_argument("--algo", default=NAME)
    algo = parser.parse_known_args(given)[0].algo
    if algo != NAME:
        script = command.replace("-", "_").replace("optimize", "train")
        parser.error(
            f"argument --algo: {algo!r} is not PPOX; this command is for {NAME!r}, which is also its default. "
            f"For {algo!r} run: python -m rl_zoo3.{script} --algo {algo}"
        )


def joined(command: str, given: Sequence[str]) -> list[str]:
    """Each option of several values once, with the values of all its occurrences: rl_zoo3 keeps the last one's only."""
    parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False, allow_abbrev=False)
    for names in REPEATABLE:
        parser.add_argument(*names, nargs="+", action="extend", dest=names[0])
    found, rest = parser.parse_known_args(given)
    for option, values in vars(found).items():
        rest += [option, *values] if values else []
    return rest


def require_no_contradiction(command: str, given: Sequence[str]) -> None:
    """Leaves with a message where rl_zoo3 would obey one of two options and pass over the other."""
    for options in EXCLUSIVE:
        chosen = [option for option in options if _has(given, option)]
        if len(chosen) > 1:
            parser = argparse.ArgumentParser(prog=f"ppox {command}", add_help=False)
            parser.error(f"argument {chosen[1]}: not allowed with {chosen[0]}; leave one of them out")


def warn_of_idle_options(command: str, given: Sequence[str]) -> None:
    """A ``UserWarning`` for each option that has no effect in this command."""
    searching = any(_has(given, option) for option in ("--optimize-hyperparameters", "-optimize"))
    idle = {option: "PPOX has no replay buffer" for option in REPLAY_BUFFER}
    if searching:
        idle |= dict.fromkeys(OF_TRAINING, "it is for a training (ppox train), not for the trials of a search")
    else:
        idle |= dict.fromkeys(OF_SEARCH, "it is for a search (ppox optimize)")
    if not _has(given, "--track"):
        idle |= dict.fromkeys(OF_TRACKING, "it needs --track")
    for option, reason in idle.items():
        if _has(given, option):
            warnings.warn(f"ppox {command}: {option} has no effect: {reason}", stacklevel=2)


def _has(given: Sequence[str], option: str) -> bool:
    return any(argument == option or argument.startswith(f"{option}=") for argument in given)


def quote_texts(given: Sequence[str]) -> Iterator[str]:
    """Quotes the texts among ``-params name:value``, because rl_zoo3 evaluates every value as Python.

    ``clip_range:cosine:0.2:0.05`` and ``surrogate:spo`` are meant as text; ``n_steps:64`` and
    ``policy_kwargs:dict(activation_fn=nn.ReLU)`` are Python and stay as they are.
    """
    in_params = False
    for argument in given:
        if argument.startswith("-"):
            in_params = argument in ("-params", "--hyperparams")
        elif in_params and ":" in argument:
            name, value = argument.split(":", 1)
            if not _is_python(value):
                argument = f"{name}:{value!r}"
        yield argument


def _is_python(value: str) -> bool:
    """Whether ``value`` is an expression whose names rl_zoo3 knows; ``lin_3e-4`` is one of ``lin_3e``."""
    import rl_zoo3.utils  # where rl_zoo3 evaluates it

    try:
        nodes = list(ast.walk(ast.parse(value.strip(), mode="eval")))
    except SyntaxError:
        return False
    known = vars(builtins).keys() | vars(rl_zoo3.utils).keys()
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return all(node.id in known | bound for node in nodes if isinstance(node, ast.Name))
