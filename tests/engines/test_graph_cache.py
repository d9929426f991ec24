"""What a model keeps of its graphs and recordings."""

from __future__ import annotations

from sb3_ppo_ext.engines.graph_cache import GRAPHS_OF_A_KIND, evict_oldest


def test_the_oldest_of_a_kind_goes_for_a_new_one_and_no_other() -> None:
    known = {("update", 0): "oldest", ("acting", 0): "another kind"}
    for index in range(1, GRAPHS_OF_A_KIND):
        evict_oldest(known, ("update", index))
        known["update", index] = "newer"
    assert len(known) == GRAPHS_OF_A_KIND + 1  # one place less than full until then: nothing has gone
    evict_oldest(known, ("update", GRAPHS_OF_A_KIND))
    assert list(known) == [("acting", 0), *(("update", index) for index in range(1, GRAPHS_OF_A_KIND))]
