"""No file of the product is over 250 lines and no function over 40, signature and docstring included.

A subject that needs more becomes a folder, and a function that needs more becomes several.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE, FUNCTION = 250, 40

# collect_rollouts is a loop in one piece: callbacks are given its local variables, under Stable-Baselines3's names.
EXCEPTIONS = {"sb3_ppo_ext/rollout/collect.py: collect_rollouts"}


def too_large() -> dict[str, int]:
    """The lines of each file and function that is over its limit."""
    found: dict[str, int] = {}
    for folder in ("sb3_ppo_ext", "integrations"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            source, name = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
            found[name] = len(source.splitlines())
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    found[f"{name}: {node.name}"] = (node.end_lineno or node.lineno) - node.lineno + 1
    return {name: lines for name, lines in found.items() if lines > (FILE if name.endswith(".py") else FUNCTION)}


def test_files_and_functions_are_within_their_limits() -> None:
    over = {name: lines for name, lines in too_large().items() if name not in EXCEPTIONS}
    assert not over, over
