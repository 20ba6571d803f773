"""Results as a table in Markdown; the picture is `picture`'s business."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from train_series.picture import draw
from train_series.results import Found, Results

__all__ = ["report", "table"]


def report(results: Results, name: Path) -> list[Path]:
    """Write ``NAME.md`` and ``NAME.png``, and return their paths.

    Raises:
        ValueError: no run is finished, or matplotlib is not installed.
        OSError: a file cannot be written.
    """
    if not any(found.finished for found in results.runs.values()):
        raise ValueError("no run of these results is finished, so there is nothing to report")
    name.parent.mkdir(parents=True, exist_ok=True)
    page, picture = name.with_name(f"{name.name}.md"), name.with_name(f"{name.name}.png")
    draw(results, picture)
    page.write_text("\n".join([*table(results), "", f"![{results.about}]({picture.name})", ""]),
                    encoding="utf-8")  # fmt: skip
    return [page, picture]


def table(results: Results) -> list[str]:
    """Return the lines of the page: how it was taken, the heads, kinds of text, what is missing."""
    known = {n: one for n, one in (results.others | results.runs).items() if one.finished}
    trees = list(next(iter(known.values())).tau)
    lines = [results.about, "", *(f"- {line}" for line in _taken(results, known.values())), ""]
    heads = ["run", "tokens", "tokens/s", "beside"]
    heads += [f"tau, {tree}" for tree in trees]
    heads += ["first candidate right, level 1 on", "the same on the training text"]
    heads += ["tau, held-out", "n-alpha, held-out", "MB"]
    rows = [
        [
            _named(name, one),
            f"{one.tokens / 1e6:.1f} M" if one.tokens else "",
            f"{one.tokens_per_second[1]:,}" if one.tokens_per_second else "",
            str(one.beside) if one.tokens else "",
            *(f"{one.mean_tau(tree):.2f}" for tree in trees),
            _shares(one.right),
            _shares(one.accuracy),
            ", ".join(f"{tau:.2f}" for tau in one.heldout_tau.values()),
            _shares(one.n_alpha),
            f"{one.bytes / 1e6:.1f}" if one.bytes else "",
        ]
        for name, one in known.items()
    ]
    lines += _rows(heads, rows)
    kinds = list(next(iter(known.values())).tau[trees[0]])
    lines += ["", f"tau of {trees[0]} by kind of text:", ""]
    by_kind = [
        [name, *(f"{one.tau[trees[0]][kind]:.2f}" for kind in kinds)] for name, one in known.items()
    ]
    lines += _rows(["run", *kinds], by_kind)
    missing = [
        f"- {name}: {one.state}{', ' + one.why if one.why else ''}"
        for name, one in (results.others | results.runs).items()
        if not one.finished
    ]
    return [*lines, *(["", "Not there:", "", *missing] if missing else [])]


def _taken(results: Results, known: Iterable[Found]) -> list[str]:
    """Return what figures are of, and on what they were taken."""
    places = {
        f"{one.hardware}; "
        + ", ".join(f"{name} {version}" for name, version in one.versions.items())
        + (f"; commit {one.commit}" if one.commit else "")
        for one in known
    }
    return [
        f"{results.asked}, temperature 0, by `eagle bench ranks`; tau: the mean over kinds of text",
        "held-out conversations are those of the training text, by training's own evaluation",
        "speeds are medians of the log's lines, with `beside` processes on the device at most",
        *sorted(places),
    ]


def _named(name: str, found: Found) -> str:
    return f"{name} ({found.variant})" if found.variant else name


def _shares(values: Sequence[float | None]) -> str:
    return " ".join("-" if one is None else f"{one:.3f}".removeprefix("0") for one in values)


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
