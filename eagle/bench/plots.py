"""Pictures of a benchmark, by matplotlib: speed-ups, and where the time of one cycle goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eagle.bench.outcome import PARTS, Row, Speed
from eagle.bench.report import Setting, title
from eagle.errors import RequestError

__all__ = ["draw", "require_matplotlib"]

_COLOURS = {
    "draft": "#4C78A8",
    "verify": "#F58518",
    "accept": "#72B7B2",
    "commit": "#54A24B",
    "host": "#BAB0AC",
}
_RATIO = "#4C78A8"
_BAR = 0.5  # inches of height for each bar


def require_matplotlib() -> None:
    """Check, before anything is measured, that there is something to draw with.

    Raises:
        RequestError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise RequestError(
            "--plots needs matplotlib: pip install 'eagle-decoding[plots]'"
        ) from error


def draw(setting: Setting, speed: Speed, folder: Path) -> list[Path]:
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
        made.append(_save(_speedups(setting, speed), folder / "speedup.png"))
    rows = [row for row in speed.rows if row.parts]
    if rows:
        made.append(_save(_cycles(setting, rows), folder / "cycle.png"))
    return made


def _figure(bars: float, panels: int = 1) -> tuple[Any, list[Any]]:
    # Not through pyplot, which would look for a display and keep every figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.9 + _BAR * bars), layout="constrained")
    FigureCanvasAgg(figure)
    (all_axes,) = figure.subplots(1, panels, sharey=True, squeeze=False)
    for axes in all_axes:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, list(all_axes)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=150)
    return path


def _speedups(setting: Setting, speed: Speed) -> Any:
    held = [speed.row(name) for name in speed.baselines]
    rows = [row for row in speed.rows if row.name not in speed.baselines]
    figure, panels = _figure(len(rows), len(held))
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
    _head(figure, "Speed-up: median of the paired ratios, interquartile range", setting)
    return figure


def _note(axes: Any, text: str, x: float, y: float) -> None:
    axes.annotate(text, (x, y), xytext=(6, 0), textcoords="offset points", va="center")


def _cycles(setting: Setting, rows: Sequence[Row]) -> Any:
    figure, (axes,) = _figure(len(rows))
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
    _head(figure, "Where one cycle goes", setting)
    return figure


def _head(figure: Any, what: str, setting: Setting) -> None:
    where = f"{setting.label}, {setting.dtype}\n{setting.hardware}; {setting.conditions}"
    figure.suptitle(f"{what}\n{where}", x=0.01, ha="left", fontsize=9)
