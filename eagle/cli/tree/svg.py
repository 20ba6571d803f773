"""Draws a token tree as a self-contained SVG; knows a traced cycle and how to name its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html import escape

from eagle.decoding import TracedCycle

__all__ = ["draw"]

_CHARACTER = 7.9  # width of one at 13 px monospace
_LONGEST = 22  # characters of a token that are shown
_BOX, _ROW, _GAP = 43, 55, 46  # height of a node, distance of rows, room between columns
_NARROWEST = 104
_TOP, _MARGIN = 84, 24
_BAR = 3

_STYLE = """
  text { font-family: ui-sans-serif, system-ui, "DejaVu Sans", sans-serif; fill: #1f2937 }
  .token { font: 600 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace }
  .title { font-size: 16px; font-weight: 600 }
  .small { font-size: 10.5px; fill: #6b7280 }
  .box { fill: #f9fafb; stroke: #d1d5db }
  .edge { fill: none; stroke: #d1d5db; stroke-width: 1.5 }
  .accepted .box { fill: #dcfce7; stroke: #16a34a; stroke-width: 2 }
  .edge.accepted { stroke: #16a34a; stroke-width: 3 }
  .bonus .box { fill: #fef3c7; stroke: #d97706; stroke-width: 2; stroke-dasharray: 5 3 }
  .edge.bonus { stroke: #d97706; stroke-width: 2.5; stroke-dasharray: 5 3 }
  .draft { fill: #60a5fa }
  .target { fill: #16a34a }
"""


@dataclass
class _Box:
    """A node to be placed: columns by depth, rows so that siblings stay in order."""

    label: str
    kind: str
    draft: float | None
    target: float | None
    children: list[_Box] = field(default_factory=list)
    column: int = 0
    y: float = 0.0


def draw(cycle: TracedCycle, name: Callable[[int], str], title: str) -> str:
    """Return an SVG of one cycle's tree, the accepted path and the bonus token highlighted.

    Args:
        cycle: what to draw.
        name: gives the text of a token.
        title: stands above it.
    """
    root = _boxes(cycle, name)
    rows = _place(root, 0, 0)
    boxes = list(_walk(root))
    widths = [0.0] * (1 + max(box.column for box in boxes))
    for box in boxes:
        widths[box.column] = max(widths[box.column], _NARROWEST, len(box.label) * _CHARACTER + 20)
    lefts = [_MARGIN + sum(widths[:n]) + n * _GAP for n in range(len(widths))]
    width = max(lefts[-1] + widths[-1] + _MARGIN, 640, 2 * _MARGIN + len(title) * 9)
    height = _TOP + rows * _ROW + _MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>Token tree: {escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        f'<text class="title" x="{_MARGIN}" y="34">{escape(title)}</text>',
        *_legend(cycle.temperature),
        *(edge for box in boxes for edge in _edges(box, lefts, widths)),
        *(_box(box, lefts[box.column], widths[box.column]) for box in boxes),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _boxes(cycle: TracedCycle, name: Callable[[int], str]) -> _Box:
    """Return the tree of boxes: siblings by rank, the bonus token after them."""
    boxes: dict[int, _Box] = {}
    for node in sorted(cycle.nodes, key=lambda n: (n.depth, n.parent, n.rank)):
        kind = "root accepted" if node.depth == 0 else "accepted" if node.accepted else ""
        boxes[node.index] = _Box(_cut(name(node.token)), kind, node.draft_prob, node.target_prob)
        if node.depth:
            boxes[node.parent].children.append(boxes[node.index])
    bonus = _Box(_cut(name(cycle.bonus)), "bonus", None, cycle.bonus_prob)
    boxes[cycle.last].children.append(bonus)
    return boxes[0]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _place(box: _Box, column: int, row: int) -> int:
    """Give a box and all below it their places from a row on; return the first row left free."""
    box.column = column
    free = row
    for child in box.children:
        free = _place(child, column + 1, free)
    if box.children:
        box.y = (box.children[0].y + box.children[-1].y) / 2
        return free
    box.y = _TOP + row * _ROW + _BOX / 2
    return row + 1


def _walk(box: _Box) -> Iterator[_Box]:
    yield box
    for child in box.children:
        yield from _walk(child)


def _edges(box: _Box, lefts: list[float], widths: list[float]) -> Iterator[str]:
    start = lefts[box.column] + widths[box.column]
    # Highlighted ones last, so that they lie on top.
    for child in sorted(box.children, key=lambda c: c.kind != ""):
        end = lefts[child.column]
        middle = (start + end) / 2
        yield (
            f'<path class="edge {child.kind}" d="M{start:.1f} {box.y:.1f} '
            f'C{middle:.1f} {box.y:.1f} {middle:.1f} {child.y:.1f} {end:.1f} {child.y:.1f}"/>'
        )


def _box(box: _Box, x: float, width: float) -> str:
    y = box.y - _BOX / 2
    parts = [
        f'<g class="{box.kind}">',
        f'<rect class="box" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{_BOX}" rx="7"/>',
        f'<text class="token" x="{x + 10:.1f}" y="{y + 16:.1f}">{escape(box.label)}</text>',
        f'<text class="small" x="{x + 10:.1f}" y="{y + 28:.1f}">{_caption(box)}</text>',
    ]
    for number, (kind, prob) in enumerate((("draft", box.draft), ("target", box.target))):
        if prob is not None:
            length = max(prob * (width - 20), 0.5)
            top = y + _BOX - 9 + number * (_BAR + 1)
            parts.append(
                f'<rect class="{kind}" x="{x + 10:.1f}" y="{top:.1f}" width="{length:.1f}" '
                f'height="{_BAR}" rx="1.5"/>'
            )
    return "".join([*parts, "</g>"])


def _caption(box: _Box) -> str:
    if box.target is None:
        return "root"
    if box.kind == "bonus":
        return f"bonus · {box.target:.2f}"
    return f"{box.target:.2f}" if box.draft is None else f"{box.draft:.2f} → {box.target:.2f}"


def _legend(temperature: float) -> Iterator[str]:
    """Draw the key to the colours under the title."""
    x = float(_MARGIN)
    for kind, text in (
        ("draft", "draft probability"),
        ("target", "target probability"),
    ):
        yield f'<rect class="{kind}" x="{x}" y="50" width="16" height="6" rx="2"/>'
        yield f'<text class="small" x="{x + 22}" y="57">{text}</text>'
        x += 136
    for kind, text in (("accepted", "accepted path"), ("bonus", "bonus token")):
        swatch = f'<rect class="box" x="{x}" y="46" width="16" height="13" rx="3"/>'
        yield f'<g class="{kind}">{swatch}</g>'
        yield f'<text class="small" x="{x + 22}" y="57">{text}</text>'
        x += 116
    yield f'<text class="small" x="{x}" y="57">temperature {temperature:g}</text>'
