"""Draws docs/benchmarks.md and its picture from the records in docs/runs, and writes what they say into the README's
table and beside the entries of ppox.yml; no run is needed.

python -m tests.benchmarks.learning.page
"""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.learning import insertions, measurements, paper, published, short, tables
from tests.benchmarks.learning.arms import ARMS
from tests.benchmarks.learning.curves import Run, picture
from tests.benchmarks.learning.entries import FILE
from tests.benchmarks.learning.plan import EARLIER, LOCOMOTION, NO_LEGS, PLAN, WITHOUT_LEGS
from tests.benchmarks.learning.results import Record, Results, mean_return
from tests.benchmarks.learning.screen import HALF_THE_TARGET, LOWER, SCREEN, STAGGERED, base_of
from tests.benchmarks.learning.short import SHORT, ZOO
from tests.benchmarks.measuring import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "images" / "learning.svg"
OF_FRESH_SEEDS = ROOT / "docs" / "images" / "fresh_seeds.svg"
README = ROOT / "README.md"
COMPARED = ("sb3", "cleanrl", "tianshou", "falling", "rate by KL", "steered")  # in the first table and picture
ON_FRESH_SEEDS = PLAN["confirm"].arms
TARGETS = {
    STAGGERED: "0.015 nats, rate from 5e-5",
    LOWER: "0.015 nats, rate from 1e-5",
    HALF_THE_TARGET: "0.0075 nats, from 1e-5: the recipe",
    f"{LOWER}, a quarter of the target": "0.00375 nats, from 1e-5",
}
WITH_LEGS = PLAN["screen"].tasks
BASES = {arm: base_of(arm) for arm in SCREEN if arm != "falling"}
BASES_WITHOUT_LEGS = {arm: base_of(arm) for arm in WITHOUT_LEGS[1:]} | {"falling": WITHOUT_LEGS[0]}
TEXT = Path(__file__).with_name("page.md")


def curves(results: Results, stage: str, arms: tuple[str, ...], tasks: tuple[str, ...]) -> str:
    """The picture of a stage; "" where nothing is recorded."""
    drawn = {}
    for task in tasks:
        found = {arm: [run_of(record) for record in results.of(stage, arm, task)] for arm in arms}
        shown = {arm: runs for arm, runs in found.items() if runs}
        if shown:
            drawn[task] = shown
    return picture(drawn) if drawn else ""


def run_of(record: Record) -> Run:
    """What a picture shows of a record."""
    return Run(record["curve"], None if "error" in record else mean_return(record))


def compared(results: Results) -> list[str]:
    """The arms of the first table that have records."""
    return [arm for arm in COMPARED if arm in results.arms("screen")]


def sections(results: Results) -> dict[str, str]:
    """The tables by the names under which the text of the page has them."""
    arms = compared(results)
    fresh = [arm for arm in ON_FRESH_SEEDS if arm in results.arms("confirm")]
    tasks = [task for task in PLAN["confirm"].tasks if any(len(results.of("confirm", arm, task)) for arm in fresh)]
    no_legs = [arm for arm in PLAN["no_legs"].arms if arm in results.arms("no_legs")]
    return {
        "progress": tables.progress(results),
        "deterministic": tables.by_task(results, "screen", arms, LOCOMOTION, "deterministic"),
        "training": tables.by_task(results, "screen", arms, LOCOMOTION, "last_100"),
        "together": tables.together(results, "screen", arms, LOCOMOTION),
        "seconds": tables.seconds(results, "screen", arms, LOCOMOTION),
        "confirmed": tables.by_task(results, "confirm", fresh, tasks, "deterministic"),
        "confirmed_training": tables.by_task(results, "confirm", fresh, tasks, "last_100"),
        "against": tables.against(results, "confirm", "recipe", tasks),
        "averaged": measurements.averaged(results, "confirm", fresh, tasks),
        "updates": measurements.updates(results, "confirm", fresh, tasks),
        "confirmed_seconds": tables.seconds(results, "confirm", (*fresh, EARLIER[0]), tasks),
        "targets": tables.by_task(results, "screen", TARGETS, WITH_LEGS, "deterministic", TARGETS),
        "earlier": tables.by_task(results, "confirm", ("recipe", *EARLIER), tasks, "deterministic"),
        "knobs": tables.knobs(results, "screen", BASES, WITH_LEGS),
        "no_legs": tables.by_task(results, "no_legs", no_legs, NO_LEGS, "deterministic"),
        "no_legs_knobs": tables.knobs(results, "no_legs", BASES_WITHOUT_LEGS, NO_LEGS),
        "short": tables.by_task(results, "short", SHORT, tuple(ZOO), "deterministic"),
        "short_knobs": tables.knobs(
            results, "short", {arm: short.base_of(arm) for arm in tuple(SHORT)[1:]}, tuple(ZOO)
        ),
        "table_one": paper.table_one(results),
        "table_one_tasks": paper.by_task(results),
        "bounds": measurements.bounds(results),
        "published": published.best_published(results),
        "versions": published.of_versions(results),
        "entries": tables.entries(results, ARMS["ppox.yml"].tasks),
    }


def page(results: Results) -> str:
    """The whole page."""
    return TEXT.read_text(encoding="utf-8").format(**sections(results))


def files(results: Results) -> dict[Path, str]:
    """All that is drawn."""
    readme = insertions.readme(README.read_text(encoding="utf-8"), results)
    settings = insertions.entries(FILE.read_text(encoding="utf-8"), results)
    drawn = curves(results, "screen", COMPARED, LOCOMOTION)
    fresh = curves(results, "confirm", ON_FRESH_SEEDS, PLAN["confirm"].tasks)
    return {PAGE: page(results), PICTURE: drawn, OF_FRESH_SEEDS: fresh, README: readme, FILE: settings}


def main() -> None:
    """Writes the files."""
    for path, content in files(Results.of_folder()).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
