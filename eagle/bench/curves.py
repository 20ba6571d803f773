"""The picture of serving: tokens per second against what requests wait for, load by load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eagle.bench.plots import figure_of, head, require_matplotlib, save
from eagle.bench.report import Setting, title
from eagle.bench.served import Cell, Contender, Percentiles

__all__ = ["COLOURS", "draw_throughput"]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Told apart by the colour-blind (Okabe and Ito 2008); plain decoding is grey."""

_PLAIN = "#555555"
_MARKS, _LINES = "oDh^vp", ("-", "--", "-.")
_SIZE = 17  # of a marker, in points: a number fits into it


def draw_throughput(setting: Setting, cells: Sequence[Cell], path: Path) -> Path:
    """Draw tokens per second against latency: of queues on the left, of arrivals on the right.

    A panel without loads of its kind is left out. Each marker is the median and has its load in it;
    the line upwards from it ends at the 99th percentile.

    Args:
        setting: what was measured; it stands in the picture.
        cells: the figures.
        path: of the PNG file.

    Returns:
        The file.
    """
    require_matplotlib()
    queues = [cell for cell in cells if cell.load.rate is None]
    comings = [cell for cell in cells if cell.load.rate is not None]
    figure, panels = figure_of(5.2, bool(queues) + bool(comings), shared=False, width=11)
    rest = iter(panels)
    if queues:
        axes = next(rest)
        _curves(axes, queues, _each_token)
        axes.set_ylabel("milliseconds for each further token of a request")
        axes.set_title("all queued at once; in the marker: requests decoded at once", fontsize=9)
    if comings:
        axes = next(rest)
        _curves(axes, comings, lambda one: (one.whole, 1.0))
        axes.set_ylabel("seconds for a whole request, from when it came")
        axes.set_title("as they come; in the marker: requests a second", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=min(len(labels), 5),
        frameon=False,
        fontsize=9,
    )
    head(figure, "Throughput against latency: median, and line to the 99th percentile", setting)
    return save(figure, path)


def _each_token(one: Contender) -> tuple[Percentiles | None, float]:
    return one.token, 1e3


def _curves(
    axes: Any,
    cells: Sequence[Cell],
    waiting: Callable[[Contender], tuple[Percentiles | None, float]],
) -> None:
    for number in range(len(cells[0].contenders)):
        points = []
        for cell in cells:
            one = cell.contenders[number]
            found, unit = waiting(one)
            if found is not None:
                load = cell.load.rate or cell.load.slots
                speed = one.tokens_per_second.median
                points.append((speed, unit * found.p50, unit * (found.p99 - found.p50), load))
        if not points:
            continue
        plain = number == len(cells[0].contenders) - 1
        colour = _PLAIN if plain else COLOURS[number % len(COLOURS)]
        across, up, above, loads = zip(*points, strict=True)
        axes.errorbar(
            across,
            up,
            yerr=([0] * len(points), above),
            color=colour,
            marker="s" if plain else _MARKS[number % len(_MARKS)],
            linestyle=":" if plain else _LINES[number % len(_LINES)],
            markersize=_SIZE,
            markeredgecolor="white",
            capsize=3,
            elinewidth=1,
            label=title(cells[0].contenders[number]),
        )
        for x, y, load in zip(across, up, loads, strict=True):
            axes.annotate(
                f"{load:g}", (x, y), color="white", ha="center", va="center", fontsize=7.5,
                fontweight="bold", zorder=10,
            )  # fmt: skip
    axes.margins(0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlim(0, 1.12 * axes.dataLim.xmax)
    axes.set_xlabel("tokens per second, all requests together")
    axes.grid(alpha=0.25)
