"""The figures of serving as tables, JSON and notes; measures nothing and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from eagle.bench.report import Setting, Table, title
from eagle.bench.served import Cell, Contender, Percentiles, Service
from eagle.spec import DecoderSpec

__all__ = ["latency_table", "throughput_json", "throughput_note", "throughput_table"]

_ENOUGH = 100  # values, from which on the 99th percentile is not the largest


def throughput_table(cells: Sequence[Cell]) -> Table:
    """Return tokens per second, speed-up over plain, tau, memory and identity under every load."""
    judged = any(one.identity for cell in cells for one in cell.contenders)
    blocks = any(one.blocks for cell in cells for one in cell.contenders)
    headings = ["", "tokens/s", "over plain", "latency below plain's", "tau", "peak GB"]
    table = [headings + ["blocks"] * blocks + ["same as plain"] * judged]
    for cell, one in _all(cells):
        beside = one is not cell.plain
        row = [
            _name(cell, one),
            one.tokens_per_second.show(1),
            one.speedup(cell.plain).show() if beside else "",
            one.quickness(cell.plain).show() if beside else "",
            "" if one.tau is None else f"{one.tau:.2f}",
            f"{one.memory / 1e9:.2f}",
        ]
        row += [str(one.blocks or "")] * blocks
        row += [one.identity.show() if one.identity and beside else ""] * judged
        table.append(row)
    return table


def latency_table(cells: Sequence[Cell]) -> Table:
    """Return what requests waited for: 50th and 99th percentile of each kind of waiting."""
    table = [["50th / 99th percentile", "first token, ms", "each further token, ms",
              "between deliveries, ms", "whole request, s"]]  # fmt: skip
    for cell, one in _all(cells):
        kinds = [(one.first, 1e3), (one.token, 1e3), (one.waits, 1e3), (one.whole, 1.0)]
        table.append([_name(cell, one), *(_show(found, unit) for found, unit in kinds)])
    return table


def throughput_note(cells: Sequence[Cell]) -> str:
    """Return how many values percentiles are of, and what else one has to know of the figures."""
    plain = cells[0].plain
    count, rounds = len(plain.requests), len(plain.rounds)
    notes = [
        f"{_number(rounds, 'round')} under each load, so {count} requests in each row; medians "
        "and interquartile ranges of the rounds, ratios round by round."
    ]
    if count < _ENOUGH:
        notes.append(
            f"The 99th percentile of {count} requests is the slowest of them; between "
            "deliveries there are more values."
        )
    notes += [
        f"While {one.name} was timed at {cell.load.label}, "
        f"{_number(one.captured, 'graph')} had to be captured, which its figures include."
        for cell, one in _all(cells)
        if one.captured
    ]
    return " ".join(notes)


def throughput_json(
    setting: Setting, specs: Mapping[str, DecoderSpec], cells: Sequence[Cell]
) -> dict[str, Any]:
    """Return everything that was measured, every request included, the answers' texts left out."""
    return asdict(setting) | {
        "specs": {name: spec.model_dump(mode="json") for name, spec in specs.items()},
        "loads": [
            asdict(cell.load) | {"rows": [_row(cell, one) for one in cell.contenders]}
            for cell in cells
        ],
    }


def _row(cell: Cell, one: Contender) -> dict[str, Any]:
    beside = one is not cell.plain
    return {
        "name": one.name,
        "lossless": one.lossless,
        "nodes": one.nodes,
        "tokens_per_second": asdict(one.tokens_per_second),
        "over_plain": asdict(one.speedup(cell.plain)) if beside else None,
        "latency_below_plain": asdict(one.quickness(cell.plain)) if beside else None,
        "tau": one.tau,
        "first_token": one.first and asdict(one.first),
        "each_further_token": one.token and asdict(one.token),
        "between_deliveries": one.waits and asdict(one.waits),
        "whole_request": one.whole and asdict(one.whole),
        "peak_memory": one.memory,
        "blocks": one.blocks,
        "captured_while_timed": one.captured,
        "identity": one.identity and asdict(one.identity),
        "rounds": [_round(service) for service in one.rounds],
    }


def _round(service: Service) -> dict[str, Any]:
    shown = asdict(service)
    for one in shown["requests"]:
        one["answer"] = len(one["answer"])
    return shown | {"tokens": service.tokens, "seconds": service.seconds}


def _all(cells: Sequence[Cell]) -> list[tuple[Cell, Contender]]:
    return [(cell, one) for cell in cells for one in cell.contenders]


def _name(cell: Cell, one: Contender) -> str:
    return f"{title(one)}, {cell.load.label}"


def _show(found: Percentiles | None, unit: float) -> str:
    if found is None:
        return ""
    digits = 0 if unit > 1 else 2
    return f"{unit * found.p50:.{digits}f} / {unit * found.p99:.{digits}f}"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
