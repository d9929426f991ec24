"""Whole trainings of language models by graphs learn what eager training learns, in every case: on a CPU, and as on a
GPU."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from torch import fx

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines import graph_cache
from sb3_ppo_ext.engines.cuda import engine
from sb3_ppo_ext.engines.fingerprints import signature
from sb3_ppo_ext.engines.tracing import trace
from sb3_ppo_ext.language.engines.engine import CompiledTokenEngine
from tests.cases import assert_same_learning
from tests.engines.cuda.rehearsal import Rehearsed
from tests.language.cases import TOKEN_CASES, has_another_decoder, model_of
from tests.traced_graphs import graphs_of, trace_only

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning", "ignore:You have specified")

STEPS = 32  # two rollouts of 16 responses


@functools.cache
def eager(name: str) -> PPOX:
    """Trained once for both comparisons."""
    return model_of(name, compile=False).learn(STEPS)


def compiling(name: str) -> PPOX:
    """The model of a case. It decodes by a graph in one case of each decoder, to trace which takes half of the time."""
    model = model_of(name, compile=True)
    model._engines.actor_refused = name != "everything" and not has_another_decoder(name)
    return model


KNOWN: dict[Any, fx.GraphModule] = {}


@pytest.fixture(autouse=True)
def traced_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What both tests of a case trace, for inputs of the same shapes, is traced in the first of them."""

    def traced(function: Any, inputs: Any, policy: Any, **options: Any) -> fx.GraphModule:
        modules = [(type(module), module.training) for module in policy.modules()]
        key = (name, type(function), *modules, signature(inputs), *sorted(options.items()))
        if key not in KNOWN:
            KNOWN[key] = trace(function, inputs, policy, **options)
        return KNOWN[key]

    monkeypatch.setattr(graph_cache, "trace", traced)


# The scope lets the two tests of a case follow each other.
@pytest.mark.parametrize("name", TOKEN_CASES, scope="module")
def test_graphs_learn_what_eager_training_does(name: str) -> None:
    graphs = compiling(name)
    trace_only(graphs)
    graphs.learn(STEPS)
    calls = graphs_of(graphs).calls
    assert calls["gradient of tokens"] and bool(calls["decoding"]) is not graphs._engines.actor_refused
    assert_same_learning(graphs, eager(name))


@pytest.mark.parametrize("name", TOKEN_CASES, scope="module")
def test_recordings_learn_what_eager_training_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.RECORDERS, "cpu", Rehearsed)
    recorded = compiling(name)
    refused = recorded._engines.actor_refused
    recorded.learn(STEPS)
    assert isinstance(recorded._engines.engine, CompiledTokenEngine) and recorded._engines.engine.recorded
    assert not recorded._engines.update_refused and recorded._engines.actor_refused is refused
    assert_same_learning(recorded, eager(name))
