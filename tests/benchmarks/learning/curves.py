"""Learning curves as an SVG picture, in text that is the same wherever it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

Curve = Sequence[tuple[int, float | None]]  # (steps, mean return of the last 100 episodes)
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
WIDTH, HEIGHT, MARGIN, LEGEND = 420, 250, 46, 26
STYLE = "font-family:sans-serif;font-size:11px;fill:#333"


class Run(NamedTuple):
    """A training's curve, and the score of its final model; None where it diverged."""

    curve: Curve
    score: float | None


class Axes(NamedTuple):
    """Where a panel's numbers are drawn."""

    left: float
    top: float
    steps: float
    low: float
    high: float

    def point(self, steps: float, value: float) -> tuple[float, float]:
        """Pixels of a point."""
        x = self.left + MARGIN + (WIDTH - MARGIN - 14) * steps / self.steps
        share = (value - self.low) / (self.high - self.low)
        return x, self.top + HEIGHT - MARGIN + 10 - (HEIGHT - MARGIN - 22) * share

    def line(self, curve: Sequence[tuple[float, float]], colour: str, width: float, opacity: float = 1.0) -> str:
        """A polyline through a curve."""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.point(*point) for point in curve))
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-opacity="{opacity}"/>'
        )

    def dot(self, score: float, colour: str) -> str:
        """A dot beside the end of the curves."""
        x, y = self.point(self.steps, score)
        return f'<circle cx="{x + 7:.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.8"/>'


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    """One line of text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def known(curve: Curve) -> list[tuple[float, float]]:
    """The points of a curve that have a value."""
    return [(float(steps), float(value)) for steps, value in curve if value is not None]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean of several runs at the same updates, as far as all of them reach."""
    length = min(len(curve) for curve in curves)
    columns = [[known([curve[index]]) for curve in curves] for index in range(length)]
    full = [[points[0] for points in column] for column in columns if all(column)]
    return [(float(np.mean([x for x, _ in column])), float(np.mean([y for _, y in column]))) for column in full]


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between the two."""
    spacing = 10.0 ** np.floor(np.log10((high - low) / 3))
    factor = next(factor for factor in (1, 2, 5, 10) if (high - low) / (spacing * factor) <= 6)
    first = np.ceil(low / (spacing * factor))
    return [
        float(number * spacing * factor) + 0.0 for number in np.arange(first, np.floor(high / (spacing * factor)) + 1)
    ]


def panel(title: str, arms: Mapping[str, Sequence[Run]], colours: Mapping[str, str], left: float, top: float) -> str:
    """One task: a thin line and a dot for every run, a thick line for the mean of each arm."""
    points = [point for runs in arms.values() for run in runs for point in known(run.curve)]
    scores = [run.score for runs in arms.values() for run in runs if run.score is not None]
    values = [*scores, *(value for _, value in points)]
    low, high = min(values), max(values)
    axes = Axes(left, top, max(steps for steps, _ in points), low, high if high > low else low + 1)
    parts = [text(left + WIDTH / 2, top + 14, title, "middle", "bold")]
    for number in ticks(axes.low, axes.high):
        (x, y), (end, _) = axes.point(0, number), axes.point(axes.steps, number)
        parts.append(f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(text(x - 5, y + 4, f"{number:g}", "end"))
    for share in (0.0, 0.5, 1.0):
        x, y = axes.point(share * axes.steps, axes.low)
        parts.append(text(x, y + 16, f"{share * axes.steps / 1e6:.2g}M", "middle"))
    for name, runs in arms.items():
        parts += [axes.line(known(run.curve), colours[name], 0.8, 0.45) for run in runs]
        parts.append(axes.line(mean_curve([run.curve for run in runs]), colours[name], 2.2))
        parts += [axes.dot(run.score, colours[name]) for run in runs if run.score is not None]
    return "\n".join(parts)


def picture(tasks: Mapping[str, Mapping[str, Sequence[Run]]]) -> str:
    """All tasks, two to a row, under one legend."""
    names = list(dict.fromkeys(name for arms in tasks.values() for name in arms))
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    columns, rows = min(len(tasks), 2), -(-len(tasks) // 2)
    parts, x = [], 20.0
    for name in names:
        parts.append(f'<rect x="{x:.1f}" y="8" width="16" height="4" fill="{colours[name]}"/>')
        parts.append(text(x + 20, 14, name))
        x += 34 + 6.4 * len(name)
    for index, (task, arms) in enumerate(tasks.items()):
        parts.append(panel(task, arms, colours, index % 2 * WIDTH, LEGEND + index // 2 * HEIGHT))
    width, height = max(columns * WIDTH, int(x)), LEGEND + rows * HEIGHT
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" style="{STYLE}">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="white"/>', *parts, "</svg>", ""])
