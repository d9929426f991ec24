"""The API reference has every public name once, and the site shows what the links of its pages lead to."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = {
    **{
        f"sb3_ppo_ext{room}": f"sb3_ppo_ext{room.replace('.', '/')}"
        for room in ("", ".vec_env", ".tensordicts", ".language")
    },
    **{f"sb3_ppo_ext_{name}": f"integrations/sb3_ppo_ext_{name}" for name in ("torchrl", "zoo")},
}


def public_names() -> set[str]:
    """Every name in an ``__all__``, with its package; read from the source, so that no extra is needed."""
    names = set()
    for package, folder in PACKAGES.items():
        tree = ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                names |= {f"{package}.{name}" for name in ast.literal_eval(node.value)}
    return names


def documented_names() -> Counter[str]:
    """What the directives of docs/api name, with the module that is current there."""
    found: Counter[str] = Counter()
    for page in sorted((DOCS / "api").glob("*.md")):
        module = ""
        for directive, name in re.findall(r"^\.\. (\w+):: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE):
            if directive == "currentmodule":
                module = name
            elif directive.startswith("auto"):
                found[name if name.startswith("sb3_ppo_ext") else f"{module}.{name}"] += 1
    return found


def test_the_reference_has_every_public_name_once() -> None:
    documented = documented_names()
    missing = sorted(public_names() - documented.keys())
    assert not missing, f"no entry in docs/api: {missing}"
    assert set(documented.values()) == {1}, documented.most_common(3)


def test_every_example_is_shown() -> None:
    page = (DOCS / "site/examples.md").read_text(encoding="utf-8")
    files = [path for path in (ROOT / "examples").rglob("*") if path.suffix in (".py", ".yml")]
    missing = [path.name for path in files if f"../../{path.relative_to(ROOT).as_posix()}\n" not in page]
    assert not missing, missing


@pytest.fixture
def links(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.delitem(sys.modules, "site_links", raising=False)
    return import_module("site_links")


@pytest.mark.parametrize(
    ("text", "folder", "page", "expected"),
    [
        ("[a](docs/zoo.md#on)", "", "docs/site/arguments.md", "[a](../zoo.md#on)"),  # of README.md, included there
        ("[a](../README.md#schedules)", "docs", "docs/zoo.md", "[a](site/arguments.md#schedules)"),
        ("[a](CHANGELOG.md)", "", "docs/site/how-it-is-built.md", "[a](changelog.md)"),
        ("[a](../examples/demo.py)", "docs", "docs/zoo.md", "[a](site/examples.md#demopy)"),
        ("![a](../examples/images/growth.png)", "docs", "docs/speed.md", "![a](../examples/images/growth.png)"),
        ("[a](https://example.org/x)", "docs", "docs/zoo.md", "[a](https://example.org/x)"),
        ("f[0](x)", "docs", "docs/zoo.md", "f[0](x)"),
    ],
)
def test_a_link_leads_to_the_page_that_shows_the_file(
    links: Any, text: str, folder: str, page: str, expected: str
) -> None:
    assert links.site_links(text, ROOT / folder, ROOT / page) == expected
