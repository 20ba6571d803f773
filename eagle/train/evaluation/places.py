"""The picture of a simulation: tau by kind of text, and along the text; knows no head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eagle.errors import DataError
from eagle.train.evaluation.figure import COLOURS, MARKS, STYLE, require_matplotlib
from eagle.train.evaluation.simulation import Simulation

__all__ = ["draw_simulation"]


def draw_simulation(found: Simulation, out: Path) -> None:
    """Draw a simulation to a file, whose suffix says of which kind it is.

    Raises:
        DataError: matplotlib is not installed, or the file cannot be written.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 3.8), layout="constrained")
        FigureCanvasAgg(figure)
        bars, lines = figure.subplots(1, 2)
        _bars(bars, found)
        _lines(lines, found)
        try:
            figure.savefig(out, dpi=200)
        except (OSError, ValueError) as error:
            raise DataError(f"{out} cannot be written: {error}") from error


def _bars(axes: Any, found: Simulation) -> None:
    sets = list(found.places)
    height = 0.8 / len(found.tau)
    for number, (title, by_set) in enumerate(found.tau.items()):
        places = [row + number * height for row in range(len(sets))]
        drawn = axes.barh(
            places, [by_set[name] for name in sets], height, label=title,
            color=COLOURS[number % len(COLOURS)],
        )  # fmt: skip
        axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=7)
    axes.set_yticks([row + height * (len(found.tau) - 1) / 2 for row in range(len(sets))], sets)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("tau (tokens a cycle)")
    axes.set_title("by kind of text")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    axes.margins(x=0.12)


def _lines(axes: Any, found: Simulation) -> None:
    for number, (name, places) in enumerate(found.places.items()):
        middles = [(one.start + one.end) / 2 for one in places]
        axes.errorbar(
            middles, [one.tau for one in places], [2 * one.error for one in places], label=name,
            color=COLOURS[number % len(COLOURS)], marker=MARKS[number % len(MARKS)],
            markersize=4, capsize=2, elinewidth=0.8,
        )  # fmt: skip
    axes.set_ylim(bottom=1.0)
    axes.set_xlabel("position in the text (tokens)")
    axes.set_ylabel("tau")
    axes.set_title(f"along the text ({found.tree}; bars: two standard errors)")
    if any(found.places.values()):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
