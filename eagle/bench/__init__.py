"""Knows how to measure decoders and what to hold them against; of terminals and options, nothing.

What it exports is imported when it is first used: a command reads its files before torch is there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagle.bench.attention import AttentionShape, attention_times
    from eagle.bench.compare import Against, Comparison, Side, compare_decoder, plain_spec
    from eagle.bench.curves import draw_throughput
    from eagle.bench.entries import enter, everybody
    from eagle.bench.experts import expert_times
    from eagle.bench.identity import Choice
    from eagle.bench.leaderboard import run_leaderboard, shipped_prompts
    from eagle.bench.leaderboard_page import write_page
    from eagle.bench.mixtures import mixture_of
    from eagle.bench.plots import draw_speed, require_matplotlib
    from eagle.bench.products import product_times, products_of
    from eagle.bench.prompts import read_conversations, read_prompts
    from eagle.bench.remote import ServedGreedy, verify_served, verify_served_greedy
    from eagle.bench.report import (
        Setting,
        Table,
        attention_table,
        bandwidth_note,
        cycle_table,
        experts_table,
        markdown,
        products_table,
        speed_json,
        speed_table,
        speedup_table,
        sweep_json,
        sweep_table,
    )
    from eagle.bench.served import Load
    from eagle.bench.serving import PLAIN, measure_throughput
    from eagle.bench.shapes import Shape, find_shape
    from eagle.bench.significance import check_alpha
    from eagle.bench.speed import check_baselines, measure_speed
    from eagle.bench.standings import Section, digest_of, read_sections, write_sections
    from eagle.bench.subjects import Subjects, prepare
    from eagle.bench.sweep import sweep_passes
    from eagle.bench.throughput import (
        latency_table,
        throughput_json,
        throughput_note,
        throughput_table,
    )
    from eagle.bench.verify import (
        PROMPTS,
        Identity,
        Progress,
        Sampled,
        verify_greedy,
        verify_sampled,
    )

_HOMES = {
    "attention": ("AttentionShape", "attention_times"),
    "compare": ("Against", "Comparison", "Side", "compare_decoder", "plain_spec"),
    "curves": ("draw_throughput",),
    "entries": ("enter", "everybody"),
    "experts": ("expert_times",),
    "identity": ("Choice",),
    "leaderboard": ("run_leaderboard", "shipped_prompts"),
    "leaderboard_page": ("write_page",),
    "mixtures": ("mixture_of",),
    "plots": ("draw_speed", "require_matplotlib"),
    "products": ("product_times", "products_of"),
    "prompts": ("read_conversations", "read_prompts"),
    "remote": ("ServedGreedy", "verify_served", "verify_served_greedy"),
    "report": (
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
    ),
    "served": ("Load",),
    "serving": (
        "PLAIN",
        "measure_throughput",
    ),
    "shapes": ("Shape", "find_shape"),
    "significance": ("check_alpha",),
    "speed": ("check_baselines", "measure_speed"),
    "standings": ("Section", "digest_of", "read_sections", "write_sections"),
    "subjects": ("Subjects", "prepare"),
    "sweep": ("sweep_passes",),
    "throughput": ("latency_table", "throughput_json", "throughput_note", "throughput_table"),
    "verify": ("PROMPTS", "Identity", "Progress", "Sampled", "verify_greedy", "verify_sampled"),
}

__all__ = [
    "PLAIN",
    "PROMPTS",
    "Against",
    "AttentionShape",
    "Choice",
    "Comparison",
    "Identity",
    "Load",
    "Progress",
    "Sampled",
    "Section",
    "ServedGreedy",
    "Setting",
    "Shape",
    "Side",
    "Subjects",
    "Table",
    "attention_table",
    "attention_times",
    "bandwidth_note",
    "check_alpha",
    "check_baselines",
    "compare_decoder",
    "cycle_table",
    "digest_of",
    "draw_speed",
    "draw_throughput",
    "enter",
    "everybody",
    "expert_times",
    "experts_table",
    "find_shape",
    "latency_table",
    "markdown",
    "measure_speed",
    "measure_throughput",
    "mixture_of",
    "plain_spec",
    "prepare",
    "product_times",
    "products_of",
    "products_table",
    "read_conversations",
    "read_prompts",
    "read_sections",
    "require_matplotlib",
    "run_leaderboard",
    "shipped_prompts",
    "speed_json",
    "speed_table",
    "speedup_table",
    "sweep_json",
    "sweep_passes",
    "sweep_table",
    "throughput_json",
    "throughput_note",
    "throughput_table",
    "verify_greedy",
    "verify_sampled",
    "verify_served",
    "verify_served_greedy",
    "write_page",
    "write_sections",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
