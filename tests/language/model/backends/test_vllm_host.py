"""vLLM has the names that are assumed of it: the stand-in of the tests, and vLLM itself where it is installed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from sb3_ppo_ext.language.model.backends import vllm_host
from tests.language.model.backends import vllm_stand_in


@pytest.fixture(params=["stand-in", "vllm"])
def module(request: pytest.FixtureRequest) -> Any:
    return vllm_stand_in.module() if request.param == "stand-in" else pytest.importorskip("vllm")


def test_the_engine_has_its_methods_and_their_arguments(module: Any) -> None:
    assert all(callable(getattr(module.LLM, name)) for name in vllm_host.LLM_METHODS)
    assert set(vllm_host.GENERATE) <= inspect.signature(module.LLM.generate).parameters.keys()
    assert "method" in inspect.signature(module.LLM.collective_rpc).parameters
    assert "level" in inspect.signature(module.LLM.sleep).parameters


def test_sampling_parameters_have_their_fields_and_cut_nothing_off(module: Any) -> None:
    parameters = module.SamplingParams()
    assert all(hasattr(parameters, name) for name in vllm_host.PARAMETERS)
    whole = (parameters.top_p, parameters.min_p, parameters.repetition_penalty, parameters.n)
    assert whole == (1.0, 0.0, 1.0, 1) and parameters.top_k in (0, -1)


def test_what_is_decided_is_an_argument_of_the_engine(module: Any) -> None:
    names = set(inspect.signature(module.LLM.__init__).parameters)
    if hasattr(module, "EngineArgs"):  # the rest of vLLM's arguments
        names |= inspect.signature(module.EngineArgs).parameters.keys()
    assert {*vllm_host.DECIDED, "dtype", "enable_sleep_mode"} <= names
