"""Whole trainings by graphs on the CPU, before the compiler, learn what eager training learns, in every case."""

from __future__ import annotations

import pytest

from tests.cases import CASES, assert_same_learning, model_of
from tests.traced_graphs import graphs_of, trace_only

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning", "ignore:You have specified")


@pytest.mark.parametrize("name", CASES)
def test_graphs_learn_what_eager_training_does(name: str) -> None:
    eager = model_of(name, compile=False).learn(128)
    graphs = model_of(name, compile=True)
    trace_only(graphs)
    graphs.learn(128)
    assert graphs_of(graphs).calls["acting"] >= 2 * 32
    assert any(kind.startswith("update") for kind in graphs_of(graphs).calls)
    assert_same_learning(graphs, eager)
