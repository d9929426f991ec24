"""What a model keeps of its graphs and recordings."""

from __future__ import annotations

from sb3_ppo_ext.engines.graph_cache import KEPT, make_room


def test_the_oldest_of_a_kind_goes_for_a_new_one_and_no_other() -> None:
    known = {("update", 0): "oldest", ("acting", 0): "another kind"}
    for index in range(1, KEPT):
        make_room(known, ("update", index))
        known["update", index] = "newer"
    assert len(known) == KEPT + 1  # one place less than full until then: nothing has gone
    make_room(known, ("update", KEPT))
    assert list(known) == [("acting", 0), *(("update", index) for index in range(1, KEPT))]
