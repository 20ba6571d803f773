"""The figures of a benchmark as tables, Markdown and JSON; knows no terminal and no plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from eagle.bench.attention import AttentionTimes
from eagle.bench.experts import ExpertTimes
from eagle.bench.outcome import PARTS, Row, Speed
from eagle.bench.products import ProductTimes
from eagle.bench.served import Contender
from eagle.bench.subjects import Subjects
from eagle.bench.sweep import Sweep
from eagle.host import hardware, versions
from eagle.spec import DecoderSpec

__all__ = [
    "Setting",
    "Table",
    "attention_table",
    "bandwidth_note",
    "cycle_table",
    "experts_table",
    "markdown",
    "products_table",
    "speed_json",
    "speed_table",
    "speedup_table",
    "sweep_json",
    "sweep_table",
    "table_lines",
    "title",
]

Table = list[list[str]]
"""Headings, then rows; the first column names the row."""


@dataclass(frozen=True)
class Setting:
    """What was measured, and with what.

    Attributes:
        label: what the target is.
        hardware: model of the device.
        dtype: of the weights.
        conditions: prompts, temperature and the like, in a few words.
        command: as it could be given again.
        versions: of Python and packages.
        sizes: of the target as it was measured, widened or not.
    """

    label: str
    hardware: str
    dtype: str
    conditions: str
    command: str
    versions: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, subjects: Subjects, conditions: str, command: str) -> Setting:
        """Return the setting of some decoders here and now."""
        target = subjects.target
        sizes = {
            "hidden_size": target.info.hidden_size,
            "layers": target.info.layers,
            "heads": target.heads,
            "kv_heads": target.kv_heads,
            "head_dim": target.head_dim,
            "vocab_size": target.info.vocab_size,
            "parameters": sum(weight.numel() for weight in target.model.parameters()),
        }
        label = subjects.label
        if target.together is not None:
            label += f" over {target.together.count} processes"
            sizes["processes"] = target.together.count
        return cls.here(label, target.device, target.dtype, conditions, command, sizes)

    @classmethod
    def here(
        cls,
        label: str,
        device: torch.device,
        dtype: torch.dtype,
        conditions: str,
        command: str,
        sizes: Mapping[str, int],
    ) -> Setting:
        """Return the setting of a measurement on a device of this machine, now."""
        kind = str(dtype).removeprefix("torch.")
        return cls(label, hardware(device), kind, conditions, command, versions(), sizes)

    @property
    def sentence(self) -> str:
        """What stands above every table."""
        return f"{self.label}, {self.dtype}, {self.hardware}; {self.conditions}"

    @property
    def packages(self) -> str:
        """The versions in one line."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())


def title(row: Row | Contender) -> str:
    """Return what a row is called in tables and plots."""
    return row.name if row.lossless else f"{row.name} (not lossless)"


def speed_table(speed: Speed) -> Table:
    """Return tokens per second, tau, memory and, at temperature 0, identity of every row."""
    held = [speed.row(name) for name in speed.baselines] if speed.greedy else []
    table = [["", "tokens/s", "tau", "peak GB", *(f"same as {other.name}" for other in held)]]
    for row in speed.rows:
        cells = [
            f"{row.tokens_per_second:.1f}",
            "" if row.tau is None else f"{row.tau:.2f}",
            f"{row.memory / 1e9:.2f}",
        ]
        same = ["" if row is o else f"{row.same(o)} of {speed.answers}" for o in held]
        table.append([title(row), *cells, *same])
    return table


def speedup_table(speed: Speed) -> Table:
    """Return how many times as fast every row is as each baseline, with interquartile ranges."""
    held = [speed.row(name) for name in speed.baselines]
    table = [["", *(f"over {other.name}" for other in held)]]
    for row in speed.rows:
        ratios = ["" if row is other else row.speedup(other).show() for other in held]
        if any(ratios):
            table.append([title(row), *ratios])
    return table


def cycle_table(speed: Speed) -> Table:
    """Return where the milliseconds of a cycle go, for the rows that have cycles."""
    step = speed.row("plain").cycle if "plain" in speed.baselines else None
    table = [["", "nodes", "ms/cycle", *PARTS, "floor", "share", *(["steps"] if step else [])]]
    for row in speed.rows:
        if row.cycle is None:
            continue
        cells = [title(row), str(row.nodes), f"{row.cycle:.2f}"]
        cells += [f"{row.parts[part]:.2f}" if row.parts else "" for part in PARTS]
        cells += [f"{row.floor:.2f}", "" if row.share is None else f"{row.share:.0%}"]
        table.append(cells + ([f"{row.cycle / step:.2f}"] if step else []))
    return table


def sweep_table(sweep: Sweep) -> Table:
    """Return what a verification takes for each number of nodes."""
    table = [["nodes", "verification ms", "LM head alone ms", "floor ms", "over floor"]]
    for each in sweep.passes:
        times = [each.verify.show(), each.readout.show(3), f"{each.floor:.2f}"]
        table.append([str(each.nodes), *times, f"{each.over_floor:.2f}"])
    return table


def attention_table(found: AttentionTimes) -> Table:
    """Return what one layer's tree attention takes with each backend."""
    first = found.times[0]
    table = [["", "microseconds", "GB/s", "of read bandwidth", f"over {first.name}"]]
    for each in found.times:
        ratio = first.microseconds.median / each.microseconds.median
        share = each.bandwidth / found.bandwidth
        speed = f"{each.bandwidth / 1e9:.0f}"
        name = f"{each.name} (not captured)" if each.launched else each.name
        table.append([name, each.microseconds.show(1), speed, f"{share:.0%}", f"{ratio:.2f}"])
    return table


def products_table(found: ProductTimes) -> Table:
    """Return what each product takes, by PyTorch alone and as passes make it."""
    table = [["microseconds", "rows", "PyTorch", "here", "quicker by", "floor", "over it"]]
    for each in found.times:
        product, ours = each.product, each.ours.median
        table.append(
            [
                f"{product.name}, {product.columns} x {product.depth}{', int8' * each.int8}",
                str(each.rows),
                f"{each.plain.median:.1f}",
                f"{ours:.1f}",
                each.ratio.show(2),
                f"{each.floor:.1f}",
                f"{ours / each.floor:.2f}",
            ]
        )
    return table


def experts_table(found: ExpertTimes) -> Table:
    """Return what the experts of a layer take, and how fast those that are read are read."""
    mixed = found.mixture
    sizes = f"{mixed.top} of {mixed.experts} experts, {mixed.hidden} x {mixed.inner}"
    headings = (
        "microseconds,rows,read,expected,MB,transformers,here,quicker by,GB/s,of the bandwidth"
    )
    rows = [
        [
            sizes + ("" if each.kernels else ", by transformers"),
            str(each.rows),
            f"{each.read:.2f}",
            f"{mixed.expected(each.rows):.2f}",
            f"{each.size / 1e6:.1f}",
            f"{each.theirs.median:.1f}{' uncaptured' * each.launched}",
            f"{each.ours.median:.1f}",
            each.ratio.show(2),
            f"{each.speed / 1e9:.0f}",
            f"{each.share:.0%}",
        ]
        for each in found.times
    ]
    return [headings.split(","), *rows]


def markdown(setting: Setting, note: str, tables: Sequence[Table]) -> str:
    """Return tables as Markdown, with what they were measured on and how.

    Args:
        setting: what was measured; it stands above the tables.
        note: what stands below them.
        tables: the figures.
    """
    lines = [f"**{setting.sentence}**", "", f"    {setting.command}", ""]
    for table in tables:
        lines += [*table_lines(table), ""]
    lines.append(f"{note} Versions: {setting.packages}.")
    return "\n".join(lines) + "\n"


def table_lines(table: Table) -> list[str]:
    """Return the lines of a table in Markdown."""
    headings, *rows = table
    shown = ["| " + " | ".join(row) + " |" for row in (headings, *rows)]
    return [shown[0], "|" + "---|" * len(headings), *shown[1:]]


def bandwidth_note(bandwidth: float) -> str:
    """Return what is said of the read bandwidth, in bytes per second."""
    return f"The read bandwidth in the same run was {bandwidth / 1e9:.0f} GB/s."


def speed_json(setting: Setting, specs: Mapping[str, DecoderSpec], speed: Speed) -> dict[str, Any]:
    """Return everything that was measured, every trial included, the answers' texts left out."""
    return asdict(setting) | {
        "bandwidth": speed.bandwidth,
        "greedy": speed.greedy,
        "rows": [_row_json(specs, speed, row) for row in speed.rows],
    }


def _row_json(specs: Mapping[str, DecoderSpec], speed: Speed, row: Row) -> dict[str, Any]:
    others = [speed.row(name) for name in speed.baselines if name != row.name]
    spec = specs.get(row.name)
    trials = []
    for trial in row.trials:
        shown = asdict(trial)
        shown["answers"] = [len(answer) for answer in trial.answers]
        trials.append(shown)
    return {
        "name": row.name,
        "baseline": row.name in speed.baselines,
        "lossless": row.lossless,
        "spec": spec.model_dump(mode="json") if spec else None,
        "tokens_per_second": row.tokens_per_second,
        "speedup": {other.name: asdict(row.speedup(other)) for other in others},
        "identical": {other.name: row.same(other) for other in others} if speed.greedy else None,
        "answers": speed.answers,
        "tau": row.tau,
        "nodes": row.nodes,
        "ms_per_cycle": row.cycle,
        "phases_ms": row.parts,
        "floor_ms": row.floor,
        "share_of_floor": row.share,
        "peak_memory": row.memory,
        "trials": trials,
    }


def sweep_json(setting: Setting, sweep: Sweep) -> dict[str, Any]:
    """Return what `sweep_passes` measured."""
    return asdict(setting) | asdict(sweep)
