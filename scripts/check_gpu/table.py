"""Records and verdicts as text, shortest last; knows no files."""

from __future__ import annotations

from collections.abc import Sequence

from check_gpu.figures import Record
from check_gpu.verdicts import Verdict

__all__ = ["case_lines", "other_lines", "test_lines", "worse_lines"]

_COLUMNS = ("cycle_ms", "pass_ms", "tau", "tokens_s")
_MARKS = {"worse": " WORSE", "better": " better", "new": "", "gone": "", "same": "", "apart": ""}
_NAMED = 10  # names listed before the rest is only counted


def case_lines(verdicts: Sequence[Verdict], against: str) -> list[str]:
    """Return a line for each case: the median now, its change, and the mark of what got worse.

    Args:
        verdicts: of figures that are called ``shape/spec/b1/t0/kind``; others are left out.
        against: what the change is a change from.
    """
    cases: dict[str, dict[str, Verdict]] = {}
    for each in verdicts:
        case, _, kind = each.name.rpartition("/")
        if case.count("/") == 3 and "/passes/" not in case:
            cases.setdefault(case, {})[kind] = each
    if not cases:
        return []
    table = [[f"change from {against}", *_COLUMNS]]
    for case, found in cases.items():
        table.append([case, *(_cell(found.get(kind)) for kind in _COLUMNS)])
    widths = [max(len(row[place]) for row in table) for place in range(len(table[0]))]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def other_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return one line for each other group: starts, and passes by number of nodes."""
    groups: dict[str, list[str]] = {}
    for each in verdicts:
        case, _, kind = each.name.rpartition("/")
        if case.startswith("start"):
            groups.setdefault(case, []).append(f"{kind} {_cell(each)}")
        elif "/passes/" in case and kind == "pass_ms":
            group, _, nodes = case.rpartition("/")
            groups.setdefault(f"{group} {kind}", []).append(f"{nodes} {_cell(each)}")
    return [f"{group}: {', '.join(cells)}" for group, cells in groups.items()]


def _cell(verdict: Verdict | None) -> str:
    if verdict is None or (verdict.now is None and verdict.then is None):
        return "-"
    if verdict.now is None:
        return f"gone ({verdict.then:.4g})"
    shown = f"{verdict.now:.4g}"
    if verdict.change is not None and verdict.spread is not None:
        shown += f" {100 * verdict.change:+.1f}±{100 * verdict.spread:.1f}%"
    elif verdict.then is not None:
        shown += f" ({verdict.then:.4g})"
    return shown + _MARKS[verdict.word]


def worse_lines(verdicts: Sequence[Verdict], against: str) -> list[str]:
    """Return the summary: how many figures there are of each kind, and the names of the worse."""
    words = ("worse", "better", "same", "new", "gone", "apart")
    counts = {word: [v for v in verdicts if v.word == word] for word in words}
    told = ", ".join(f"{len(found)} {word}" for word, found in counts.items() if found)
    lines = [f"against {against}: {told or 'nothing'}"]
    for each in sorted(counts["worse"], key=_gravity, reverse=True):
        change, spread = 100 * (each.change or 0), 100 * (each.spread or 0)
        medians = f"{each.then:.4g} -> {each.now:.4g}"
        lines.append(f"  WORSE {each.name}: {medians} ({change:+.1f}%, spread {spread:.1f}%)")
    return _shortened(lines)


def _gravity(verdict: Verdict) -> float:
    """Return by how many spreads a figure changed."""
    return abs(verdict.change or 0) / (verdict.spread or 1)


def test_lines(record: Record) -> list[str]:
    """Return what became of the tests and of what is missing, by name."""
    lines = []
    if record.tests:
        failed, late = record.tests["failed"], record.tests["not run in time"]
        lines.append(
            f"tests: {record.tests['passed']} passed, {len(failed)} failed, "
            f"{record.tests['skipped']} skipped"
            + (f", {len(late)} not run in time" if late else "")
        )
        lines += _shortened([f"  FAILED {name}" for name in failed])
        lines += _shortened([f"  not run {name}" for name in late])
    return lines + _shortened([f"missing {name}: {why}" for name, why in record.missing.items()])


def _shortened(lines: list[str]) -> list[str]:
    lines = [line[:200] for line in lines]
    if len(lines) <= _NAMED + 1:
        return lines
    return [*lines[:_NAMED], f"  and {len(lines) - _NAMED} more"]
