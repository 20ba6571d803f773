"""Results drawn by matplotlib: tau and acceptance by variant, tau against training tokens."""

from __future__ import annotations

import statistics
from pathlib import Path
from textwrap import wrap
from typing import Any

from train_series.results import Found, Results

__all__ = ["draw"]

# Okabe and Ito's palette, which readers who see few colours can tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LETTERS = 14  # of a title to an inch
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}


def draw(results: Results, out: Path) -> None:
    """Draw what there is: variants in two panels, series in one.

    Raises:
        ValueError: matplotlib is not installed, or there is nothing to draw.
        OSError: the file cannot be written.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError(
            "the picture needs matplotlib: pip install 'eagle-decoding[plots]'"
        ) from error
    finished = [one for one in results.runs.values() if one.finished]
    variants: dict[str, list[Found]] = {}
    series: dict[str, list[Found]] = {}
    for one in finished:
        if one.variant:
            variants.setdefault(one.variant, []).append(one)
        if one.series:
            series.setdefault(one.series, []).append(one)
    panels = 2 * bool(variants) + bool(series)
    if not panels:
        raise ValueError("no finished run has a variant or a series, so there is nothing to draw")
    with rc_context(_STYLE):
        width = max(4.6 * panels, 5.6)
        height = max(3.8, 1.6 + 0.42 * len(variants))
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        rest = iter(figure.subplots(1, panels, squeeze=False)[0])
        tree = next(iter(finished[0].tau))
        if variants:
            _bars(next(rest), variants, tree)
            _levels(next(rest), variants)
        if series:
            _curves(next(rest), series, results.others, tree)
        hardware = ", ".join(sorted({one.hardware for one in finished}))
        said = (results.about, f"{results.asked}; {hardware}")
        title = "\n".join(line for one in said for line in wrap(one, int(_LETTERS * width)))
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
        # Axes that were laid out have other ticks, which need other room: so once more.
        figure.draw_without_rendering()
        figure.savefig(out, dpi=150)


def _bars(axes: Any, variants: dict[str, list[Found]], tree: str) -> None:
    """Draw tau by variant; where a variant has several runs, each is a dot on their mean."""
    taus = [[one.mean_tau(tree) for one in runs] for runs in variants.values()]
    means = [statistics.fmean(values) for values in taus]
    colours = [_COLOURS[number % len(_COLOURS)] for number in range(len(means))]
    axes.barh(range(len(means)), means, 0.6, color=colours)
    for place, values in enumerate(taus):
        axes.annotate(
            f"{means[place]:.2f}", (max(values), place), xytext=(6, 0), va="center", fontsize=8,
            textcoords="offset points",
        )  # fmt: skip
        if len(values) > 1:
            axes.plot(values, [place] * len(values), "o", color="black", markersize=4)
    axes.set_yticks(range(len(means)), list(variants))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(1.0, 1.12 * max(map(max, taus)) - 0.12)
    axes.set_xlabel("tau (tokens a cycle); dots: runs of other seeds")
    axes.set_title(f"tau of {tree}")


def _levels(axes: Any, variants: dict[str, list[Found]]) -> None:
    """Draw how often the first candidate is right, level by level."""
    for number, (name, runs) in enumerate(variants.items()):
        means = [
            statistics.fmean(level) for level in zip(*(one.right for one in runs), strict=False)
        ]
        axes.plot(
            range(1, len(means) + 1), means, label=name, markersize=4,
            color=_COLOURS[number % len(_COLOURS)], marker=_MARKS[number % len(_MARKS)],
        )  # fmt: skip
    axes.set_xlabel("level drafted")
    axes.set_ylabel("first candidate right")
    axes.set_title("acceptance by level (colours as on the left)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(bottom=0)


def _curves(axes: Any, series: dict[str, list[Found]], others: dict[str, Found], tree: str) -> None:
    """Draw tau against training tokens, with heads that were not trained as lines across."""
    for number, (name, runs) in enumerate(series.items()):
        ordered = sorted(runs, key=lambda one: one.tokens)
        axes.plot(
            [one.tokens / 1e6 for one in ordered], [one.mean_tau(tree) for one in ordered],
            label=name, color=_COLOURS[number % len(_COLOURS)], marker=_MARKS[number % len(_MARKS)],
            markersize=5,
        )  # fmt: skip
    for number, (name, one) in enumerate(others.items()):
        if one.finished:
            colour = _COLOURS[(len(series) + number) % len(_COLOURS)]
            axes.axhline(one.mean_tau(tree), label=name, color=colour, linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    seen = sorted({one.tokens / 1e6 for runs in series.values() for one in runs})
    axes.set_xticks(seen, [f"{tokens:.3g}" for tokens in seen])
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel(f"tau of {tree}")
    axes.set_title("against the amount of text")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
