from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.language.model.backends import vllm_stand_in


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[vllm_stand_in.LLM]]:
    """The stand-in in the place of the package; the class of its engines, with those that were made."""
    monkeypatch.setitem(sys.modules, "vllm", vllm_stand_in.module())
    monkeypatch.setattr(vllm_stand_in.LLM, "made", [])
    yield vllm_stand_in.LLM
