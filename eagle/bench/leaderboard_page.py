"""The page of a leaderboard, in Markdown, and its pictures; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eagle.bench.curves import COLOURS
from eagle.bench.plots import figure_of, require_matplotlib, save
from eagle.bench.report import Table, table_lines
from eagle.bench.serving import PLAIN
from eagle.bench.standings import Section, Standing
from eagle.host import write_text

__all__ = ["domain_table", "draw_standings", "leaderboard_page", "standings_table", "write_page"]

_OTHERS = "#777777"
_INTRODUCTION = """\
# Leaderboard

Specs beside each other on one target, kind of text by kind of text. `eagle bench leaderboard` has
written this page; each part says with what. Without names it runs every shipped spec, and every
registered draft head, tree and rule in its place in the default spec. A plug-in takes part by being
named: `eagle bench leaderboard NAME`, or a YAML file of yours. What was run is kept beside the page
and not run again (`--fresh` does).

- **over plain** is tokens/s over those of the same runtime without drafting, which takes its turn
  on the same prompts: the median of all turns of all kinds of text, and their interquartile range.
  Reading the prompts is included.
- **tau** is tokens committed per verification.
- **same as plain**, at temperature 0: answers with the very tokens of plain decoding. In bfloat16
  passes of another width round otherwise, and near ties fall otherwise too; `eagle verify` and
  `eagle bench throughput` tell these from mistakes.
- **ahead** marks the Pareto line: no other lossless spec is at least as fast both with the
  smallest batch, which is what one reader waits for, and with the largest, which is what a machine
  serves. A large tree often wins the one and loses the other.
"""


def leaderboard_page(sections: Sequence[Section], pictures: Sequence[str]) -> str:
    """Return the page.

    Args:
        sections: one for each machine and target.
        pictures: the name of each one's picture.
    """
    lines = [_INTRODUCTION]
    for section, picture in zip(sections, pictures, strict=True):
        lines += [f"## {section.subject}", "", f"{section.conditions}, by", ""]
        lines += [f"    {section.command}", ""]
        lines += [f"![{_alt(section)}]({picture})", ""]
        for temperature, batch in section.modes:
            lines += [f"### Temperature {temperature:g}, batch {batch}", ""]
            lines += [*table_lines(standings_table(section, temperature, batch)), ""]
            lines += ["Over plain by domain, tau in brackets:", ""]
            lines += [*table_lines(domain_table(section, temperature, batch)), ""]
        if section.failed:
            lines += ["### Could not run", "", "| | why |", "|---|---|"]
            lines += [f"| {name} | {_cell(why)} |" for name, why in section.failed.items()]
            lines.append("")
        lines += [f"Versions: {section.versions}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def standings_table(section: Section, temperature: float, batch: int) -> Table:
    """Return everybody's figures over all domains in one mode, the fastest first."""
    ahead = section.ahead(temperature)
    greedy = temperature == 0
    head = ["", "head, tree, rule", "nodes", "tau", "tokens/s", "over plain"]
    table = [head + ["same as plain"] * greedy + ["ahead"]]
    for name, found in _ordered(section, temperature, batch):
        competitor = section.competitors[name]
        row = [
            name if competitor.lossless else f"{name} (not lossless)",
            competitor.what,
            str(competitor.nodes),
            f"{found.tau:.2f}",
            f"{found.tokens_per_second:.1f}",
            "1" if name == PLAIN else found.speedup.show(),
        ]
        row += [found.same if name != PLAIN else ""] * greedy
        table.append([*row, "yes" if name in ahead else ""])
    return table


def domain_table(section: Section, temperature: float, batch: int) -> Table:
    """Return everybody's speed-up and tau in one mode, domain by domain."""
    table = [["", *section.domains]]
    for name, found in _ordered(section, temperature, batch):
        if name == PLAIN:
            continue
        by_domain = {race.domain: Standing((race,)) for race in found.races}
        cells = [by_domain.get(domain) for domain in section.domains]
        shown = [f"{one.speedup.median:.2f} ({one.tau:.1f})" if one else "" for one in cells]
        table.append([name, *shown])
    return table


def _ordered(section: Section, temperature: float, batch: int) -> list[tuple[str, Standing]]:
    found = [
        (name, standing)
        for name in section.competitors
        if (standing := section.standing(name, temperature, batch))
    ]
    return sorted(found, key=lambda one: -one[1].speedup.median)


def _alt(section: Section) -> str:
    return f"Speed-up with one request at a time and {'with many' if _many(section) else 'tau'}"


def _many(section: Section) -> bool:
    return len({batch for _, batch in section.modes}) > 1


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def write_page(sections: Sequence[Section], page: Path) -> list[Path]:
    """Write the page and a picture for each section beside it; return the files."""
    files = [page.with_name(f"{page.stem}-{number}.png") for number, _ in enumerate(sections, 1)]
    for section, file in zip(sections, files, strict=True):
        draw_standings(section, file)
    write_text(page, leaderboard_page(sections, [file.name for file in files]))
    return [page, *files]


def draw_standings(section: Section, path: Path) -> Path:
    """Draw speed-up with one request at a time against speed-up with many, and the Pareto line.

    Names stand in a column at the right of their panel, each joined to its point, so that they
    never lie on each other. With one batch size, tau takes the other's place.

    Args:
        section: what was found.
        path: of the PNG file.
    """
    require_matplotlib("a leaderboard")
    warmths = sorted({temperature for temperature, _ in section.modes})
    count = len(section.competitors)
    figure, panels = figure_of(
        max(4.6, 1.6 + 0.27 * count), len(warmths), shared=False, width=6.2 * len(warmths)
    )
    for temperature, axes in zip(warmths, panels, strict=True):
        _panel(axes, section, temperature)
    unbeaten = "not beaten at both" if _many(section) else "not beaten"
    figure.suptitle(
        f"Medians of all kinds of text; circles and bold: {unbeaten}\n{section.subject}",
        x=0.01,
        ha="left",
        fontsize=9,
    )
    return save(figure, path)


def _panel(axes: Any, section: Section, temperature: float) -> None:
    batches = [batch for warmth, batch in section.modes if warmth == temperature]
    small, large = batches[0], batches[-1]
    ahead = section.ahead(temperature)
    points: dict[str, tuple[float, float]] = {}
    for name in section.competitors:
        first = section.standing(name, temperature, small)
        second = section.standing(name, temperature, large)
        if first and second:
            along = first.tau if small == large else first.speedup.median
            points[name] = (along, second.speedup.median)
    if not points:
        return
    line = sorted(points[name] for name in ahead)
    axes.plot(*zip(*line, strict=True), color=COLOURS[1], linewidth=1.2, zorder=1)
    for name, (x, y) in points.items():
        front = name in ahead
        axes.plot(
            x, y, marker="o" if front else "s", markersize=7,
            color=COLOURS[1] if front else _OTHERS, markeredgecolor="white", zorder=3,
        )  # fmt: skip
    axes.margins(0.1)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    if small != large:
        axes.axvline(1, color="black", linewidth=0.8, linestyle=":")
    names = sorted(points, key=lambda name: points[name][1])
    for place, name in enumerate(names):
        axes.annotate(
            name if section.competitors[name].lossless else f"{name} (not lossless)",
            points[name],
            xytext=(1.04, (place + 0.5) / len(names)),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            fontweight="bold" if name in ahead else "normal",
            arrowprops={"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.6, "shrinkB": 4},
            zorder=2,
        )
    axes.set_title(f"temperature {temperature:g}", fontsize=9)
    axes.set_xlabel("tau" if small == large else f"times as fast as plain, batch {small}")
    axes.set_ylabel(f"times as fast as plain, batch {large}")
    axes.grid(alpha=0.2)
