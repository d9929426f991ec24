from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from text_tasks import walks
from text_tasks.walks import GOAL, LONGEST, as_text, nodes_to_goal, optimality, random_walks, scores


def test_graph_and_walks_are_those_of_trlx() -> None:
    # From trlX's own generate_random_walks(21, 10, 1000, 0.1, 1002), run once: its edges, its walks, its shortest paths
    # (by networkx) from the nodes 1 to 20.
    drawn = random_walks()
    assert int(drawn.edges.sum()) == 43
    expected = ["walk o s e o t b a", "walk q k a", "walk j r m h n b a", "walk c u a"]
    assert [as_text(walk) for walk in drawn.walks[:4]] == expected
    assert (as_text(drawn.walks[-1]), sum(map(len, drawn.walks))) == ("walk l u a", 4870)
    shortest = nodes_to_goal(drawn.edges)
    assert [shortest[node] for node in range(1, 21)] == [2, 3, 3, 5, 5, 3, 4, 4, 4, 2, 3, 5, 3, 4, 4, 3, 5, 4, 3, 2]


@pytest.mark.parametrize(
    ("start", "response", "expected"),
    [
        ("c", " u a", 1.0),  # three nodes, and none has a shorter way
        ("o", " t b a", 1.0),
        ("o", " s e o t b a", 0.5),  # seven nodes where four do: (10 - 7) / (10 - 4)
        ("c", " u a a c nonsense", 1.0),  # nothing counts after the goal
        ("c", " a", 0.0),  # no edge
        ("c", " u", 0.0),  # never arrives
        ("c", " u x a", 0.0),  # names no node
        ("c", "", 0.0),
        ("o", " s e o s e o t b a", 0.0),  # arrives as the tenth node: the longest walk there is
        ("o", " s e o s e o s e o t b a", 0.0),  # too long
    ],
)
def test_the_score_of_a_walk(start: str, response: str, expected: float) -> None:
    node = walks.NAMES.index(start)
    assert scores([f"walk {start}"], [response], start=[node]) == [pytest.approx(expected)]


def test_no_walk_scores_more_than_the_shortest_which_scores_one() -> None:
    drawn = random_walks()
    shortest = nodes_to_goal(drawn.edges)
    values = [optimality(walk, drawn.edges, shortest[walk[0]]) for walk in drawn.walks]
    assert max(values) == 1.0 and min(values) == 0.0
    assert 0.5 < sum(values) / len(values) < 0.9  # a random walk is neither the best nor hopeless
    for walk, value in zip(drawn.walks, values, strict=True):
        assert (value == 1.0) == (walk[-1] == GOAL and len(walk) == shortest[walk[0]])


def test_every_other_node_is_a_prompt_and_a_walk_fits_the_response() -> None:
    task = walks.task()
    assert task.source.texts == [f"walk {name}" for name in walks.NAMES[1:]]
    longest = walks.MODEL.tokenizer()(" b" * (LONGEST - 1))["input_ids"]
    assert len(longest) == LONGEST - 1 == task.action_space.max_new_tokens - 1  # one token each, and the end of text
