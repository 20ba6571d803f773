"""How ``eagle generate`` shows an answer and a comparison: tables, JSON and one remark.

Knows what was found; knows not how it was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from eagle.cli import console

if TYPE_CHECKING:
    from eagle.bench import Against, Comparison, Side
    from eagle.decoding import Decoder, Result, TokenLogprobs

__all__ = ["comparison_table", "describe", "logprobs_table", "remark"]


def describe(
    decoder: Decoder, answer: Result | None, comparison: Comparison | None
) -> dict[str, Any]:
    """Return what ``--json`` prints; many prompts have their rounds instead of one answer."""
    shown: dict[str, Any] = {}
    if answer is not None:
        shown |= {
            "text": answer.text,
            "tokens": list(answer.tokens),
            "finish_reason": answer.finish_reason,
            "stats": asdict(answer.stats),
            "seed": answer.seed,
        }
        if answer.logprobs is not None:
            shown["logprobs"] = [asdict(one) for one in answer.logprobs]
    elif comparison is not None:
        shown |= {"tau": comparison.tau, "rounds": [asdict(r) for r in comparison.rounds]}
    shown |= {
        "spec": decoder.spec.model_dump(mode="json"),
        "lossless": decoder.resolved.lossless,
    }
    if comparison is not None:
        shown["compare"] = {
            "plain": _figures(comparison.against("plain")),
            "hf": _figures(comparison.against("hf")),
        }
    return shown


def _figures(against: Against) -> dict[str, Any]:
    return {
        "tokens_per_second": against.tokens_per_second,
        "speedup": against.speedup,
        "identical": against.identical,
    }


def logprobs_table(decoder: Decoder, found: Sequence[TokenLogprobs]) -> Table:
    """Return the target's log probabilities, a token a row."""
    named = decoder.target.tokenizer
    table = Table(box=None, pad_edge=False)
    for heading in ("token", "logprob", "likeliest"):
        table.add_column(heading, justify="right" if heading == "logprob" else "left")

    def text(token: int) -> str:
        return escape(repr(named.decode([token])) if named else str(token))

    for one in found:
        top = "  ".join(f"{text(token)} {logprob:.3f}" for token, logprob in one.top)
        table.add_row(text(one.token), f"{one.logprob:.3f}", top)
    return table


def comparison_table(decoder: Decoder, comparison: Comparison) -> Table:
    """Return what speculation is held against, a row each."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "tokens/s", "speed-up", "range", "identical", "tau"):
        table.add_column(heading, justify="left" if not heading else "right")
    name = decoder.spec.name + ("" if decoder.resolved.lossless else " (not lossless)")
    speed = f"{comparison.tokens_per_second:.1f}"
    table.add_row(f"[bold]{escape(name)}[/]", speed, "", "", "", f"{comparison.tau:.2f}")
    others: tuple[tuple[str, Side], ...] = (
        ("plain, same runtime", "plain"),
        ("transformers generate", "hf"),
    )
    for title, side in others:
        row = comparison.against(side)
        span = f"{row.lowest:.2f} to {row.highest:.2f}" if len(comparison.rounds) > 1 else ""
        same = "" if row.identical is None else f"{row.same} of {len(comparison.rounds)}"
        table.add_row(
            title, f"{row.tokens_per_second:.1f}", f"{row.speedup:.2f}", span, same, "1.00"
        )
    return table


def remark(decoder: Decoder, comparison: Comparison) -> None:
    """Explain a difference at temperature 0 that is not the decoder's doing."""
    differs = any(comparison.against(side).identical is False for side in ("plain", "hf"))
    dtype = str(decoder.target.dtype).removeprefix("torch.")
    if differs and decoder.resolved.lossless and dtype in ("bfloat16", "float16"):
        console.err.print(
            f"Tokens differ where {dtype} rounds two near-equal logits differently in passes of "
            "different width; --set target.dtype=float32 shows it.",
            style="dim",
            soft_wrap=True,
        )
