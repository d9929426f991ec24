"""What ``ppox`` adds to a command line before rl_zoo3's own parser reads it."""

from __future__ import annotations

import argparse
import ast
import builtins
from collections.abc import Iterator, Sequence

from sb3_ppo_ext_zoo.registration import NAME

LOGS = "logs"  # where rl_zoo3's train writes; its enjoy and record_video look for downloaded agents instead


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
