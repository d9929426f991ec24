"""The page of benchmarks: drawn from the records it is drawn from, and its statistics on records set by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.learning import curves, insertions, measurements, page, paper, tables
from tests.benchmarks.learning.arms import ARMS
from tests.benchmarks.learning.kl_bound import BOUND
from tests.benchmarks.learning.plan import PLAN
from tests.benchmarks.learning.records import FOLDER, read
from tests.benchmarks.learning.results import Results, seconds_to_reach


def record(arm: str, task: str, seed: int, score: float, **more: Any) -> dict[str, Any]:
    returns = {"deterministic": [score - 1, score + 1], "sampled": [score], "last_100": score}
    return {
        "arm": arm,
        "task": task,
        "seed": seed,
        "core_seconds": 100.0,
        "settings": {"steps": 1000},
        **returns,
        **more,
    }


def results(**stages: list[dict[str, Any]]) -> Results:
    return Results({"random": [record("random", task, 0, 10.0) for task in ("a", "b", "d")], **stages})


def test_a_run_counts_for_every_arm_with_its_settings() -> None:
    found = Results({"confirm": [record("sb3", task, 0, 1.0) for task in ("Ant-v5", "Hopper-v5")]})
    assert found.of("confirm", "zoo", "Ant-v5") == found.of("confirm", "sb3", "Ant-v5") != []  # rl_zoo3's: the defaults
    assert found.of("confirm", "zoo", "Hopper-v5") == []
    assert found.of("confirm", "an arm of the past", "Ant-v5") == []


@pytest.mark.parametrize("path", page.files(Results({})), ids=lambda path: path.name)
def test_the_files_are_what_the_records_make_of_them(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == page.files(Results.of_folder())[path], (
        "draw the page again: python -m tests.benchmarks.learning.page"
    )


def test_a_cell_has_mean_number_and_from_three_runs_on_the_interval_of_the_mean() -> None:
    assert tables.cell(np.array([])) == "·"
    assert tables.cell(np.array([1000.0, 3000.0])) == "2,000 (2)"
    assert tables.cell(np.array([5.0, 5.0, 5.0])) == "5 (3) [5, 5]"
    assert [tables.number(value) for value in (-4.123, 0.01234, 99.96, 123.4, 12345.6)] == [
        *("-4.12", "0.0123", "100", "123", "12,346"),
    ]


def test_many_tasks_have_rows_and_few_have_columns() -> None:
    assert tables.arms_by_tasks(["a", "b"], [["one", "1", "2"]]).split("\n")[2:] == ["| one | 1 | 2 |"]
    drawn = tables.arms_by_tasks(list("abcde"), [["one", *"12345"], ["two", *"67890"]]).split("\n")
    assert drawn[0] == "|  | one | two |" and drawn[2::4] == ["| a | 1 | 6 |", "| e | 5 | 0 |"]


def test_scores_are_counted_from_random_actions_to_the_reference() -> None:
    # Random 10, sb3 20 in the mean: 30 is twice as far. "b" has no sb3, and no part in it.
    found = results(
        screen=[
            *(record("sb3", "a", 0, 15.0), record("sb3", "a", 1, 25.0)),
            *(record("ours", "a", seed, 30.0) for seed in range(3)),
            record("ours", "b", 0, 99.0),
        ]
    )
    assert {task: list(scores) for task, scores in found.normalised("screen", "ours", ("a", "b")).items()} == {
        "a": [2.0, 2.0, 2.0]
    }
    (line,) = [
        line for line in tables.together(found, "screen", ["sb3", "ours"], ("a", "b")).split("\n") if "ours" in line
    ]
    # sb3's mean is 1, and bootstrap means of two runs lie between 0.5 and 1.5.
    assert line == "| `ours` | 1 | 3 | 2.00 [2, 2] | 1.00 [0.5, 1.5] | 2.00 | 1.00 |"


def test_an_arm_is_compared_in_units_of_each_other_one() -> None:
    # Random 10. On "a" ours is twice as far as theirs, on "b" half as far, on "d" as far: 7/6 in the mean. Without the
    # two lowest and the two highest of nine runs .5, 1, 1, 1, 2 are left: 1.1.
    of_ours, of_theirs = ({"a": 50.0, "b": 20.0, "d": 30.0}, {"a": 30.0, "b": 30.0, "d": 30.0})
    runs = [
        record(arm, task, seed, score)
        for arm, scores in (("recipe", of_ours), ("sb3", of_theirs), ("few", {"a": 1.0}))
        for task, score in scores.items()
        for seed in range(1 if arm == "few" else 3)
    ]
    runs += [record("recipe", "c", seed, 99.0) for seed in range(3)] + [record("sb3", "c", 0, 20.0)]  # too few
    runs += [record("one task", "a", seed, 30.0) for seed in range(3)]
    (line,) = tables.against(results(confirm=runs), "confirm", "recipe", ("a", "b", "c", "d")).split("\n")[2:]
    assert line == "| `sb3` | 3 | 9 | +0.17 [+0.17, +0.17] | +0.10 [+0.10, +0.10] | 0.50 | b: -0.50 [-0.50, -0.50] |"


def test_an_entry_has_the_line_of_runs_with_its_present_settings() -> None:
    text = "CartPole-v1:\n  n_envs: 8\n\nPendulum-v1: &p\n  # Measured: 1 of old.\n  n_envs: 4\n"
    runs = [record("ppox.yml", "CartPole-v1", seed, 400.0 + 2 * seed) for seed in range(2)]
    for run in runs:
        run["settings"] = ARMS["ppox.yml"].settings("CartPole-v1")
    drawn = insertions.entries(text, Results({"entries": runs}))
    line = "  # Measured: 401 (2 seeds) with the mean action and 401 (2 seeds) with sampled ones after 100,000 steps.\n"
    assert drawn == f"CartPole-v1:\n{line}  n_envs: 8\n\nPendulum-v1: &p\n  n_envs: 4\n"
    runs[0]["settings"] = runs[1]["settings"] = {**runs[0]["settings"], "steps": 5}
    assert "Measured" not in insertions.entries(text, Results({"entries": runs}))
    below = text.replace("&p\n", "&p\n  # why\n")  # a line of old is found below another comment too
    assert insertions.entries(below, Results({})).endswith("&p\n  # why\n  n_envs: 4\n")


def test_the_comparison_s_runs_count_for_an_entry_with_their_settings() -> None:
    ours = [record("recipe", "Ant-v5", seed, 40.0, settings=ARMS["recipe"].settings("Ant-v5")) for seed in range(2)]
    zoo = [record("zoo", "Ant-v5", 0, 20.0, settings=ARMS["zoo"].settings("Ant-v5"))]
    again = [record("ppox.yml", "Ant-v5", 1, 60.0, settings=ARMS["ppox.yml"].settings("Ant-v5"))]  # counts once
    found = Results({"random": [record("random", "Ant-v5", 0, 10.0)], "confirm": ours + zoo, "entries": again})
    (line,) = tables.entries(found, ("Ant-v5",)).split("\n")[2:]
    assert line == "| Ant-v5 | 1,000,000 | 50 (2) | 50 (2) | 50 (2) | 10 | 20 (1) |"


def test_the_effect_of_a_change_is_in_units_of_its_base() -> None:
    # Random 10, base 30 in the mean: 40 is 1.5 times as far, 20 half as far.
    runs = [record("falling", "a", seed, score) for seed, score in enumerate((20.0, 30.0, 40.0))]
    runs += [record("better", "a", seed, 40.0) for seed in range(3)] + [record("falling, worse", "a", 0, 20.0)]
    drawn = tables.knobs(
        results(screen=runs), "screen", dict.fromkeys(("better", "falling, worse", "never"), "falling"), ("a", "b")
    )
    better, worse = drawn.split("\n")[2:]
    # One draw of three runs in 27, more than 2.5 %, is three times the worst of the base (0.5), or the best (1.5).
    assert better == "| `better` | `falling` | 1 | 3 | +0.50 [+0.00, +1.00] |"
    assert worse == "| `worse` | `falling` | 1 | 1 | -0.50 |"
    assert "| now better |" in tables.by_task(
        results(s=runs), "s", ["better"], ["a"], "sampled", {"better": "now better"}
    )


def test_averaged_parameters_are_compared_with_the_last_ones_of_their_own_runs() -> None:
    # Random 10; last parameters 20, 30 and 40, 20 further in the mean; averages are 5 more: a quarter.
    runs = [record("recipe", "a", seed, last, averaged=[last + 5]) for seed, last in enumerate((20.0, 30.0, 40.0))]
    runs += [record("few", "a", 0, 30.0, averaged=[35.0]), record("sb3", "a", 0, 1.0)]
    drawn = measurements.averaged(results(confirm=runs), "confirm", ("recipe", "few", "sb3"), ("a", "b"))
    assert drawn.split("\n")[2:] == [
        *("| `recipe` | +0.25 (3) | · | +0.25 [+0.25, +0.25] |", "| `few` | +0.25 (1) | · | +0.25 |"),
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda path: path.stem)
def test_runs_have_the_settings_of_the_arm_they_are_counted_for(path: Path) -> None:
    for run in read(path):
        if run["arm"] in ARMS:  # others are of the past
            assert run["settings"] == ARMS[run["arm"]].settings(run["task"]), (run["arm"], run["task"], run["seed"])


def test_a_run_that_diverged_counts_as_random_actions() -> None:
    diverged = {**record("ours", "a", 1, 500.0), "error": "ValueError: the KL is nan"}
    found = results(screen=[record("ours", "a", 0, 30.0), diverged])
    assert list(found.scores("screen", "ours", "a")) == [30.0, 10.0]


def test_seconds_are_those_until_the_level_was_first_there() -> None:
    run = record("ours", "a", 0, 9.0, curve=[[250, None], [500, 3.0], [750, 8.0], [1000, 7.0]])
    assert seconds_to_reach(run, 3.0) == 50.0
    assert seconds_to_reach(run, 5.0) == 75.0
    assert seconds_to_reach(run, 9.0) is None


def test_seconds_are_compared_on_the_processor_of_most_runs() -> None:
    fast = {"versions": {"processor": "fast"}}
    runs = [record("sb3", "a", seed, 9.0) for seed in range(3)]
    runs += [record("ours", "a", 0, 9.0), *(record("ours", "a", seed, 9.0, **fast) for seed in (1, 2))]
    found = results(confirm=runs)
    assert found.of_one_processor("confirm", ["sb3", "ours"], ["a"])["ours", "a"] == runs[3:4]
    assert found.of_one_processor("confirm", ["ours"], ["a"])["ours", "a"] == runs[4:]  # of most that are compared


def table_1(**scores: Sequence[float]) -> Results:
    """Records of every task of Table 1: random actions get -10, each row what its seeds are said to."""
    tasks = PLAN["table_one"].tasks
    runs = [
        record(f"table 1: {arm.replace('_', ' ')}", task, seed, score)
        for task in tasks
        for arm, found in scores.items()
        for seed, score in enumerate(found)
    ]
    return Results({"random": [record("random", task, 0, -10.0) for task in tasks], "table_one": runs})


def lines_of(drawn: str) -> dict[str, str]:
    """The lines of a table by their first cell."""
    return {line.split(" | ")[0].removeprefix("| "): line for line in drawn.split("\n")}


def test_table_1_is_on_the_scale_of_the_paper() -> None:
    # Random -10, best row of the paper's 30: 10 is half of it, and 50, of a row that is ours, one and a half of it.
    found = table_1(**{"clip_0.1": [10.0], "clip_0.2": [30.0], "SPO": [50.0]})
    lines = lines_of(paper.table_one(found))
    assert lines["clip 0.1"] == "| clip 0.1 | 0.76 | 0.50 | 1 | -0.50 |"
    assert lines["clip 0.2"] == "| clip 0.2 | 0.82 | 1.00 | 1 | · |"
    assert lines["SPO"] == "| SPO | · | 1.50 | 1 | +0.50 |"
    assert lines["DPPO"] == "| DPPO | · | not run | · | · |"
    assert paper.by_task(found).startswith("|  | Half Cheetah | Hopper | Inverted Double Pendulum | Inverted")
    assert lines_of(paper.by_task(found))["SPO"] == "| SPO | 50 | 50 | 50 | 50 | 50 | 50 | 50 |"


def test_table_1_has_intervals_from_three_seeds_on() -> None:
    lines = lines_of(paper.table_one(table_1(**{"clip_0.1": [10.0] * 3, "clip_0.2": [30.0] * 3})))
    assert lines["clip 0.1"] == "| clip 0.1 | 0.76 | 0.50 [0.5, 0.5] | 3 | -0.50 [-0.50, -0.50] |"


def test_a_row_of_table_1_that_lacks_a_task_is_not_the_papers_mean() -> None:
    found = table_1(**{"clip_0.2": [30.0]})
    short = Results({**found.by_stage, "table_one": found.by_stage["table_one"][:-1]})
    assert lines_of(paper.table_one(short))["clip 0.2"] == "| clip 0.2 | 0.82 | not run | · | · |"
    assert paper.by_task(short) == "Not run yet."


def test_a_kl_is_shown_over_its_bound() -> None:
    runs = [
        record("bound, soft, limit 4", "Pendulum-v1", seed, 0.0, updates={"kl_held": kl * BOUND})
        for seed, kl in ((0, 0.9), (1, 1.2))
    ]
    assert measurements.bounds(Results({"kl_bound": runs})).endswith(
        "| `bound, soft, limit 4` | Pendulum-v1 | 1.05 | 0.90, 1.20 |"
    )


def test_the_kl_of_updates_is_the_mean_over_runs() -> None:
    runs = [record("sb3", "a", seed, 0.0, updates={"approx_kl": kl}) for seed, kl in enumerate((0.02, 0.04))]
    runs += [record("a2c", "a", 0, 0.0, updates={"learning_rate": 7e-4})]  # without a KL
    drawn = measurements.updates(results(confirm=runs), "confirm", ("sb3", "a2c"), ("a", "b"))
    assert drawn.split("\n")[2:] == ["| `sb3` | 0.030 | · |", "| `a2c` | · | · |"]


def test_a_mean_curve_ends_where_the_shortest_run_does() -> None:
    assert curves.mean_curve([[(10, None), (20, 1.0), (30, 5.0)], [(10, 2.0), (22, 3.0)]]) == [(21.0, 2.0)]


@pytest.mark.parametrize(("low", "high"), [(-200.0, 7000.0), (0.0, 1.0), (-12.0, -4.0), (3.2, 3.3)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = curves.ticks(low, high)
    assert 3 <= len(found) <= 7
    assert low - 1e-9 <= found[0] and found[-1] <= high + 1e-9
    assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) == 1
