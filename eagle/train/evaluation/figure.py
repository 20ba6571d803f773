"""Draws the curves of runs by matplotlib, which is optional; knows curves, not logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eagle.errors import DataError
from eagle.train.evaluation.report import Axis, Run

__all__ = ["COLOURS", "MARKS", "STYLE", "draw", "picture", "require_matplotlib"]

# Okabe and Ito's palette, which readers who see few colours can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")
MARKS = ("o", "s", "^", "D", "v", "P")
_AXES = {
    "steps": "training steps",
    "tokens": "training tokens (millions)",
    "minutes": "training time (minutes)",
}
_GREY = "#555555"
_MANY = 60  # points above which a curve is drawn smoothed as well
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}


def require_matplotlib() -> None:
    """Check that there is something to draw with.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DataError(
            "drawing needs matplotlib, which is not installed; run "
            "pip install 'eagle-decoding[plots]'"
        ) from error


def draw(runs: Sequence[Run], out: Path, axis: Axis = "steps") -> None:
    """Write the picture of `picture` to a file, whose suffix says of which kind it is.

    Raises:
        DataError: matplotlib is not installed, a log does not know the axis, or the file cannot
            be written.
    """
    figure = picture(runs, axis)
    try:
        figure.savefig(out, dpi=200)
    except (OSError, ValueError) as error:
        raise DataError(f"{out} cannot be written: {error}") from error


def picture(runs: Sequence[Run], axis: Axis = "steps") -> Any:
    """Draw loss, accuracy, tau and n-alpha of runs into one picture.

    A colour is a run, a dash a tree, a mark a set of prompts. Without an evaluation in any run
    there is no lower row.

    Args:
        runs: at least one.
        axis: what to draw against.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        DataError: matplotlib is not installed, or a log does not know the axis.
    """
    require_matplotlib()
    # Not through pyplot, which would look for a display and keep every figure.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = any(run.tau for run in runs)
    with rc_context(STYLE):
        figure = Figure(figsize=(9.0, 6.4 if measured else 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2 if measured else 1, 2, squeeze=False)
        smoothed = _training(axes[0], runs, axis)
        if measured:
            if _once(runs):
                _tau_bars(axes[1, 0], runs)
            else:
                _taus(axes[1, 0], runs, axis)
                axes[1, 0].set_xlim(axes[0, 0].get_xlim())
            _alphas(axes[1, 1], runs)
        note = "pale: every line of the log; bold: running mean" if smoothed else ""
        _heading(figure, runs, note)
    return figure


def _heading(figure: Any, runs: Sequence[Run], note: str) -> None:
    if len(runs) > 1:
        from matplotlib.lines import Line2D

        lines = [Line2D([], [], color=_colour(i), label=run.name) for i, run in enumerate(runs)]
        figure.legend(
            handles=lines, loc="outside upper center", ncols=min(4, len(runs)), fontsize=9
        )
    else:
        figure.suptitle(f"Training run: {runs[0].name}", fontsize=11)
    if note:
        figure.supxlabel(note, fontsize=8, color=_GREY)


def _training(axes: Any, runs: Sequence[Run], axis: Axis) -> bool:
    """Draw loss and accuracy; return whether any curve was smoothed."""
    smoothed = False
    titles = {"loss": "Training loss", "accuracy": "Training accuracy"}
    for place, (key, title) in zip(axes, titles.items(), strict=True):
        for i, run in enumerate(runs):
            curve = run.train[key]
            x = run.along(curve.steps, axis)
            if len(x) > _MANY:
                smoothed = True
                place.plot(x, curve.values, color=_colour(i), alpha=0.25, linewidth=0.7)
                place.plot(x, _smooth(curve.values), color=_colour(i))
            else:
                place.plot(x, curve.values, color=_colour(i), marker=_few(x))
        _name(place, title, _AXES[axis])
    axes[0].set_ylabel("loss")
    axes[1].set_ylabel("agreement with the target")
    _robust(axes[0], [run.train["loss"].values for run in runs])
    return smoothed


def _taus(place: Any, runs: Sequence[Run], axis: Axis) -> None:
    trees = list(dict.fromkeys(tree for run in runs for tree in run.tau))
    sets = _sets(runs)
    for i, run in enumerate(runs):
        for tree, by_set in run.tau.items():
            for one, curve in by_set.items():
                look = _mark(sets.index(one)) | {"linestyle": _dash(trees.index(tree))}
                x = run.along(curve.steps, axis)
                place.plot(x, curve.values, color=_colour(i), **look)
    # What all have in common stands in the title, the rest in the legend.
    shared = [names[0] for names in (trees, sets) if len(names) == 1]
    _name(place, _titled("tau by rank replay", shared), _AXES[axis])
    place.set_ylabel("tokens per verification")
    _legend(place, trees, sets)


def _once(runs: Sequence[Run]) -> bool:
    """Return whether no run was measured twice: there is no curve to draw then."""
    return all(
        len(curve.values) < 2
        for run in runs
        for by_set in run.tau.values()
        for curve in by_set.values()
    )


def _tau_bars(place: Any, runs: Sequence[Run]) -> None:
    """Draw tau of the one evaluation of each run, tree by tree and set by set."""
    trees = list(dict.fromkeys(tree for run in runs for tree in run.tau))
    groups = [(tree, one) for tree in trees for one in _sets(runs)]
    width = 0.8 / len(runs)
    for i, run in enumerate(runs):
        for number, (tree, one) in enumerate(groups):
            curve = run.tau.get(tree, {}).get(one)
            if curve is not None and len(curve.values):
                x = number + (i - (len(runs) - 1) / 2) * width
                place.bar(x, curve.values[-1], 0.9 * width, color=_colour(i))
    _name(place, "tau by rank replay", "")
    names = ["\n".join([*tree.split(maxsplit=1), one]) for tree, one in groups]
    place.set_xticks(range(len(groups)), names, fontsize=8)
    place.grid(visible=False, axis="x")
    place.set_axisbelow(True)
    place.set_ylim(bottom=1)  # what plain decoding gives
    place.set_ylabel("tokens per verification")


def _alphas(place: Any, runs: Sequence[Run]) -> None:
    """Draw n-alpha of the last evaluation, level by level."""
    sets = _sets(runs)
    levels = 0
    for i, run in enumerate(runs):
        for one, curve in run.n_alpha.items():
            last = curve.values[-1]
            levels = max(levels, len(last))
            place.plot(range(len(last)), last, color=_colour(i), **_mark(sets.index(one)))
    title = _titled("n-alpha at the last evaluation", sets if len(sets) == 1 else [])
    _name(place, title, "n, predicted features in the context")
    place.set_xticks(range(levels))
    place.set_ylim(0, 1)
    place.set_ylabel("acceptance rate")
    _legend(place, [], sets)


def _sets(runs: Sequence[Run]) -> list[str]:
    """Return the sets of prompts of all runs."""
    found = [one for run in runs for by_set in run.tau.values() for one in by_set]
    return list(dict.fromkeys([*found, *(one for run in runs for one in run.n_alpha)]))


def _titled(title: str, shared: Sequence[str]) -> str:
    return f"{title} ({', '.join(shared)})" if shared else title


def _name(place: Any, title: str, x: str) -> None:
    from matplotlib.ticker import FuncFormatter

    place.set_title(title)
    place.set_xlabel(x)
    place.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _colour(run: int) -> str:
    return COLOURS[run % len(COLOURS)]


def _dash(tree: int) -> str:
    return _DASHES[tree % len(_DASHES)]


def _mark(prompts: int) -> dict[str, Any]:
    return {"marker": MARKS[prompts % len(MARKS)], "markersize": 4.5}


def _legend(place: Any, trees: Sequence[str], sets: Sequence[str]) -> None:
    """Explain dashes and marks below the axes, in grey: they mean the same for every run."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=_GREY, linestyle=_dash(number), label=tree)
        for number, tree in enumerate(trees if len(trees) > 1 else [])
    ]
    lines += [
        Line2D([], [], color=_GREY, linestyle="", label=one, **_mark(number))
        for number, one in enumerate(sets if len(sets) > 1 else [])
    ]
    if lines:
        place.legend(
            handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=min(3, len(lines))
        )


def _few(x: NDArray[np.float64]) -> str | None:
    return "." if len(x) < 3 else None


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over a window of a fortieth of the curve around each point.

    Towards the ends it gets narrower, so that it stays centred where the curve is steep.
    """
    count = len(values)
    at = np.arange(count)
    half = np.minimum(np.minimum(at, count - 1 - at), max(1, count // 80))
    sums = np.cumsum(np.concatenate(([0.0], values)))
    out: NDArray[np.float64] = (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)
    return out


def _robust(place: Any, found: Sequence[NDArray[np.float64]]) -> None:
    """Leave out of the picture the first lines, where a fresh head's loss is many times higher."""
    values = np.concatenate([curve[np.isfinite(curve)] for curve in found])
    later = np.concatenate([c[len(c) // 50 :] for c in found])
    later = later[np.isfinite(later)]
    if len(later) and values.max() > 2 * later.max():
        low, high = later.min(), later.max()
        place.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
