"""The direction of imports between the rooms of the package, read from its syntax trees; for type checkers included."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sb3_ppo_ext"

# A room imports from those below it and from itself; rooms on one floor do not know each other.
FLOORS = [
    {"host", "objective", "saving", "process_wide", "unknown_arguments", "optional_packages"},
    {"knobs", "vec_env", "streams", "distributed", "recipes"},
    {"run", "model_files"},
    {"policies"},
    {"rollout"},
    {"update", "tensordicts", "arguments"},
    {"engines", "monitoring"},
    {"joint_start"},
    {"rounds", "checkpoints"},
    {"construction"},
    {"ppox", "language"},
    {"__init__"},
]
LANGUAGE = [
    {"inputs"},
    {"model", "arguments"},
    {"envs"},
    {"policies"},
    {"training"},
    {"monitoring"},
    {"engines", "evaluation"},
    {"__init__"},
]


@cache
def modules() -> dict[str, ast.Module]:
    paths = sorted(PACKAGE.rglob("*.py"))
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text()) for path in paths}


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules of this package that are imported anywhere in the tree, also under TYPE_CHECKING and in functions."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.removeprefix("sb3_ppo_ext.") for name in names if name.startswith("sb3_ppo_ext."))


@cache
def edges() -> set[tuple[str, str]]:
    """Importing module -> imported module; a package stands for its ``__init__``."""
    trees = modules()

    def resolved(name: str) -> str | None:
        return next((found for found in (name, f"{name}.__init__") if found in trees), None)

    return {
        (name, other)
        for name, tree in trees.items()
        for target in imported(tree)
        if (other := resolved(target)) is not None and other != name
    }


def floor(room: str, floors: list[set[str]]) -> int:
    return next(level for level, rooms in enumerate(floors) if room in rooms)


def test_rooms_import_only_from_rooms_below() -> None:
    wrong = []
    for name, other in edges():
        room, target = name.split(".")[0], other.split(".")[0]
        if room != target and floor(target, FLOORS) >= floor(room, FLOORS):
            wrong.append(f"{name} -> {other}")
    assert not wrong, sorted(wrong)


def test_rooms_of_language_import_only_from_those_below() -> None:
    wrong = []
    for name, other in edges():
        if name.startswith("language.") and other.startswith("language.") and other != "language.__init__":
            room, target = name.split(".")[1], other.split(".")[1]
            if room != target and floor(target, LANGUAGE) >= floor(room, LANGUAGE):
                wrong.append(f"{name} -> {other}")
    assert not wrong, sorted(wrong)


def test_no_file_imports_itself_by_way_of_others() -> None:
    below: dict[str, set[str]] = {}
    for name, other in edges():
        if not other.endswith("__init__"):  # of a package whose parts import each other
            below.setdefault(name, set()).add(other)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for other in sorted(below.get(name, ())):
            visit(other, (*path, name))
        done.add(name)

    for name in sorted(below):
        visit(name, ())


def test_nothing_of_the_package_imports_an_integration() -> None:
    for name, tree in modules().items():
        for node in ast.walk(tree):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(module.startswith(("sb3_ppo_ext_torchrl", "sb3_ppo_ext_zoo")) for module in found), name


def test_only_language_imports_transformers_and_only_tensordicts_imports_tensordict() -> None:
    for name, tree in modules().items():
        for node in ast.walk(tree):
            found = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in found:
                if module.split(".")[0] in ("transformers", "peft", "tokenizers"):
                    assert name.startswith("language."), name
                if module.split(".")[0] in ("tensordict", "torchrl"):
                    assert name.startswith("tensordicts."), name
                if module.split(".")[0] == "ray":
                    assert name.startswith("vec_env.remote."), name


def test_no_test_module_imports_another() -> None:
    """What several test modules need is a fixture of a ``conftest.py`` or stands in a module of its own."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            steps = {step for name in names if name.startswith("tests.") for step in name.split(".")}
            assert not any(step.startswith("test_") for step in steps), f"{path.relative_to(ROOT)}: {names}"
