"""What a saved model names: paths that stay where they are, whatever becomes of the files behind them."""

from __future__ import annotations

import pickletools
import zipfile
from base64 import b64decode
from collections.abc import Iterator
from json import loads
from pathlib import Path
from typing import Any

import pytest

import sb3_ppo_ext
import sb3_ppo_ext.language as language
import sb3_ppo_ext.vec_env as vec_env
from sb3_ppo_ext import PPOX, AdaptiveClipFraction, AdaptiveKL, Cosine, Proportional, Warmup
from tests.environments import Toy
from tests.language import setups

PUBLIC = {"sb3_ppo_ext", "sb3_ppo_ext.language", "sb3_ppo_ext.vec_env", "sb3_ppo_ext.tensordicts"}
TINY: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "compile": False, "device": "cpu"}


def modules_in(pickle: bytes) -> Iterator[str]:
    """The modules of the classes and functions that a pickle names."""
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL":
            yield str(argument).partition(" ")[0]
        elif opcode.name == "STACK_GLOBAL":
            yield from texts[-2:-1]
        elif isinstance(argument, str):
            texts.append(argument)
            if argument.startswith("sb3_ppo_ext"):  # also what is put together later
                yield argument.partition(" ")[0]


def named_by(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        data = loads(archive.read("data"))
    pickles = [entry[":serialized:"] for entry in data.values() if isinstance(entry, dict) and ":serialized:" in entry]
    assert pickles
    return {name for pickle in pickles for name in modules_in(b64decode(pickle)) if name.startswith("sb3_ppo_ext")}


@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": AdaptiveKL(1e-3, 0.01, every="minibatch"), "clip_range": Cosine(0.2, 0.1)},
        {"kl_coef": AdaptiveKL(1.0, 0.01, Proportional(1000)), "ent_coef": Warmup(0.1, Cosine(0.01, 0.0))},
        {"clip_range": AdaptiveClipFraction(0.2, 0.1)},
    ],
)
def test_a_saved_model_names_public_paths_only(options: dict[str, Any], tmp_path: Path) -> None:
    PPOX("MlpPolicy", Toy(), **TINY, **options).learn(8).save(tmp_path / "model")
    found = named_by(tmp_path / "model.zip")
    assert "sb3_ppo_ext" in found and found <= PUBLIC


def test_a_saved_language_model_names_public_paths_only(tmp_path: Path) -> None:
    setups.ppox(ref_kl_coef=AdaptiveKL(0.1, 1.0)).save(tmp_path / "model")
    found = named_by(tmp_path / "model.zip")
    assert "sb3_ppo_ext.language" in found and found <= PUBLIC


@pytest.mark.parametrize("package", [sb3_ppo_ext, language, vec_env])
def test_what_a_package_exports_says_that_it_is_from_there(package: Any) -> None:
    functions = {"kl_estimator", "recipe", "surrogate", "value_clip", "value_error"}  # which nothing saved names
    for name in set(package.__all__) - functions:
        assert getattr(package, name).__module__ == package.__name__, name
