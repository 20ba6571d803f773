"""Pictures of a benchmark, by matplotlib: speed-ups, and where the time of one cycle goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eagle.bench.outcome import PARTS, Row, Speed
from eagle.bench.report import Setting, title
from eagle.errors import RequestError

__all__ = ["draw_speed", "figure_of", "head", "require_matplotlib", "save"]

_COLOURS = {
    "draft": "#4C78A8",
    "verify": "#F58518",
    "accept": "#72B7B2",
    "commit": "#54A24B",
    "host": "#BAB0AC",
}
_RATIO = "#4C78A8"
_BAR = 0.5  # inches of height for each bar


def require_matplotlib(option: str = "--plots") -> None:
    """Check, before anything is measured, that there is something to draw with.

    Args:
        option: what asks for pictures.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RequestError(
            f"{option} needs matplotlib: pip install 'eagle-decoding[plots]'"
        ) from error


def draw_speed(setting: Setting, speed: Speed, folder: Path) -> list[Path]:
    """Draw ``speedup.png`` and ``cycle.png``; a picture with nothing to show is left out.

    Args:
        setting: what was measured; it stands in every picture.
        speed: the figures.
        folder: where the files go; made if need be.

    Returns:
        The files.
    """
    require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    if speed.baselines:
        made.append(save(_speedups(setting, speed), folder / "speedup.png"))
    rows = [row for row in speed.rows if row.parts]
    if rows:
        made.append(save(_cycles(setting, rows), folder / "cycle.png"))
    return made


def figure_of(
    height: float, panels: int = 1, *, shared: bool = True, width: float = 9
) -> tuple[Any, list[Any]]:
    """Return a figure and its panels, side by side; sizes are in inches.

    Args:
        height: of the figure.
        panels: how many.
        shared: whether they have one vertical axis.
        width: of the figure.
    """
    # Not through pyplot, which would look for a display and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    (all_axes,) = figure.subplots(1, panels, sharey=shared, squeeze=False)
    for axes in all_axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, list(all_axes)


def _bars(count: int) -> float:
    return 1.9 + _BAR * count


def save(figure: Any, path: Path) -> Path:
    """Write a figure, and return where."""
    figure.savefig(path, dpi=150)
    return path


def _speedups(setting: Setting, speed: Speed) -> Any:
    held = [speed.row(name) for name in speed.baselines]
    rows = [row for row in speed.rows if row.name not in speed.baselines]
    figure, panels = figure_of(_bars(len(rows)), len(held))
    for other, axes in zip(held, panels, strict=True):
        ratios = [row.speedup(other) for row in rows]
        medians = [ratio.median for ratio in ratios]
        spread = [
            [ratio.median - ratio.low for ratio in ratios],
            [ratio.high - ratio.median for ratio in ratios],
        ]
        axes.barh(range(len(rows)), medians, 0.6, xerr=spread, color=_RATIO, capsize=4)
        for place, ratio in enumerate(ratios):
            _note(axes, f"{ratio.median:.2f}", ratio.high, place)
        axes.axvline(1, color="black", linewidth=1, linestyle=":")
        axes.margins(x=0.25)
        axes.set_xlim(left=0)
        axes.set_xlabel(f"times as fast as {other.name}")
    panels[0].set_yticks(range(len(rows)), [title(row) for row in rows])
    panels[0].invert_yaxis()
    head(figure, "Speed-up: median of the paired ratios, interquartile range", setting)
    return figure


def _note(axes: Any, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center")


def _cycles(setting: Setting, rows: Sequence[Row]) -> Any:
    figure, (axes,) = figure_of(_bars(len(rows)))
    places = range(len(rows))
    left = [0.0] * len(rows)
    for part in PARTS:
        widths = [row.parts[part] for row in rows]
        axes.barh(places, widths, 0.6, left=left, color=_COLOURS[part], label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.barh(
        places,
        [row.floor for row in rows],
        0.6,
        left=[row.phases["draft"] for row in rows],  # where the target begins to be read
        fill=False,
        hatch="///",
        edgecolor="black",
        label="of verify, the weight-read floor",
    )
    for place, row in enumerate(rows):
        drafted = f", tau {row.tau:.2f}" if row.tau and row.nodes != 1 else ""
        _note(axes, f"{left[place]:.2f} ms{drafted}", left[place], place)
    axes.set_yticks(places, [title(row) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.set_xlabel("milliseconds of one cycle, medians")
    figure.legend(loc="outside lower center", ncols=len(PARTS) + 1, frameon=False, fontsize=9)
    head(figure, "Where one cycle goes", setting)
    return figure


def head(figure: Any, what: str, setting: Setting) -> None:
    """Say above all panels what is shown, and what was measured."""
    where = f"{setting.label}, {setting.dtype}\n{setting.hardware}; {setting.conditions}"
    figure.suptitle(f"{what}\n{where}", x=0.01, ha="left", fontsize=9)
