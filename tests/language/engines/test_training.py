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
from tests.language.cases import TOKEN_CASES, model_of
from tests.traced_graphs import graphs_of, trace_only

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning", "ignore:You have specified")

STEPS = 32  # two rollouts of 16 responses


@functools.cache
def eager(name: str) -> PPOX:
    """Trained once for both comparisons."""
    return model_of(name, compile=False).learn(STEPS)


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_graphs_learn_what_eager_training_does(name: str) -> None:
    graphs = model_of(name, compile=True)
    trace_only(graphs)
    graphs.learn(STEPS)
    assert {"decoding", "gradient of tokens"} <= set(graphs_of(graphs).calls)
    assert_same_learning(graphs, eager(name))


@pytest.mark.parametrize("name", TOKEN_CASES)
def test_recordings_learn_what_eager_training_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.RECORDERS, "cpu", Rehearsed)
    recorded = model_of(name, compile=True).learn(STEPS)
    assert isinstance(recorded._engines.engine, CompiledTokenEngine) and recorded._engines.engine.recorded
    assert not (recorded._engines.update_refused or recorded._engines.actor_refused)
    assert_same_learning(recorded, eager(name))
