"""Whole trainings of language models by graphs learn what eager training learns, in every case: on a CPU, and as on a
GPU."""

from __future__ import annotations

import functools

import pytest

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines.cuda import engine
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


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_graphs_learn_what_eager_training_does(name: str) -> None:
    graphs = compiling(name)
    trace_only(graphs)
    graphs.learn(STEPS)
    calls = graphs_of(graphs).calls
    assert calls["gradient of tokens"] and bool(calls["decoding"]) is not graphs._engines.actor_refused
    assert_same_learning(graphs, eager(name))


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_recordings_learn_what_eager_training_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.RECORDERS, "cpu", Rehearsed)
    recorded = compiling(name)
    refused = recorded._engines.actor_refused
    recorded.learn(STEPS)
    assert isinstance(recorded._engines.engine, CompiledTokenEngine) and recorded._engines.engine.recorded
    assert not recorded._engines.update_refused and recorded._engines.actor_refused is refused
    assert_same_learning(recorded, eager(name))
