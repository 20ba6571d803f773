"""What ``eagle verify`` prints: figures, the differences that were found, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from eagle.cli import console

if TYPE_CHECKING:
    from eagle.bench import Choice, Identity, Sampled
    from eagle.decoding import Decoder
    from eagle.target import Target

__all__ = ["count", "describe", "print_choices", "print_sampled", "show", "tau_of", "verdict_of"]

_SHOWN = 12  # differences listed on the terminal; --json has them all


def _lossy(decoder: Decoder) -> str:
    return "" if decoder.resolved.lossless else " (not lossless)"


def verdict_of(decoder: Decoder, found: Identity | Sampled) -> str:
    """Return the verdict in a sentence; a lossy spec's says that it is one."""
    from eagle.bench import Identity

    lossless = decoder.resolved.lossless
    if not isinstance(found, Identity):
        p, alpha = f"p = {found.test.p:.2g}", f"{found.test.alpha:g}"
        if found.holds:
            text = f"consistent with the target's distribution: {p}, not below {alpha}"
            unseen = "; the spec is declared not lossless, which this test had not the power to see"
            return text + ("" if lossless else unseen)
        text = f"not the target's distribution: {p}, below {alpha}"
        return text + ("" if lossless else "; the spec is declared not lossless")
    if found.mistakes:
        differences = count(len(found.mistakes), "difference")
        text = f"does not hold: {differences} beyond what numerical noise explains"
    elif found.identical:
        text = f"holds: all {count(found.prompts, 'answer')} identical to both references"
    else:
        parted = len(found.plain.divergences) + len(found.hf.divergences)
        text = f"holds: {count(parted, 'divergence')}, each of them a numerical tie"
    return text + (
        "" if lossless else "; above temperature 0 the spec is not lossless, as declared"
    )


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def describe(
    decoder: Decoder, found: Identity | Sampled, temperature: float, verdict: str
) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    from eagle.bench import Identity

    shown: dict[str, Any] = {"holds": found.holds, "verdict": verdict, "temperature": temperature}
    if isinstance(found, Identity):
        shown["identity"] = {
            "prompts": found.prompts,
            "mistakes": len(found.mistakes),
            **asdict(found),
        }
    else:
        shown["sampled"] = asdict(found)
    return shown | {
        "dtype": str(decoder.target.dtype).removeprefix("torch."),
        "device": decoder.target.device.type,
        "spec": decoder.spec.model_dump(mode="json"),
        "lossless": decoder.resolved.lossless,
    }


def show(decoder: Decoder, found: Identity | Sampled, temperature: float) -> None:
    """Print the figures, without the verdict."""
    from eagle.bench import Identity

    target = decoder.target
    dtype = str(target.dtype).removeprefix("torch.")
    what = f"{decoder.spec.name}{_lossy(decoder)} with {target.info.name}"
    where = f"{dtype}, {target.device.type}, temperature {temperature:g}"
    console.out.print(f"[bold]{escape(what)}[/], {where}", soft_wrap=True)
    if isinstance(found, Identity):
        _print_identity(decoder, found)
    else:
        print_sampled(found)


def _print_identity(decoder: Decoder, found: Identity) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("answers against", "identical", "ties", "mistakes"):
        table.add_column(heading, justify="left" if heading == "answers against" else "right")
    for title, side in (
        ("plain, same runtime", found.plain),
        ("transformers generate", found.hf),
    ):
        ties = sum(choice.tie for choice in side.divergences)
        same = f"{side.identical} of {side.prompts}"
        table.add_row(title, same, str(ties), str(len(side.divergences) - ties))
    ties = sum(choice.tie for choice in found.strays)
    same = f"{found.tokens - len(found.strays)} of {found.tokens}"
    table.add_row("each token, target's own pass", same, str(ties), str(len(found.strays) - ties))
    console.out.print(table)
    console.out.print(
        f"{tau_of(found.tau)} · noise of the target's own passes {found.noise:.2g} (median)",
        style="dim",
        soft_wrap=True,
    )
    print_choices(decoder.target, found.choices)


def tau_of(tau: float) -> str:
    """Return tau as it is shown; 0 is what stands where nobody told it."""
    return f"tau {tau:.2f}" if tau else "tau not known"


def _excess(choice: Choice) -> float:
    return float("inf") if choice.distance is None else choice.distance / (choice.noise or 1e-30)


def print_choices(target: Target, choices: Sequence[Choice]) -> None:
    """Print differences, the clearest first: those farthest beyond the noise."""
    if not choices:
        return
    listed = sorted(choices, key=_excess, reverse=True)
    table = Table(box=None, pad_edge=False)
    table.add_column("difference")
    for heading in ("prompt", "position", "gap", "distance", "noise", "steps"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for c in listed[:_SHOWN]:
        table.add_row(
            escape(f"{_token(target, c.token)} for {_token(target, c.other)}"),
            str(c.prompt),
            str(c.position),
            f"{c.gap:.3g}",
            "" if c.distance is None else f"{c.distance:.3g}",
            f"{c.noise:.3g}",
            "" if c.steps is None else f"{c.steps:.3g}",
            "tie" if c.tie else "[bold red]mistake[/]",
        )
    console.out.print(table)
    if len(listed) > _SHOWN:
        more = f"and {len(listed) - _SHOWN} more, nearer to a tie; --json lists all"
        console.out.print(more, style="dim", soft_wrap=True)


def _token(target: Target, token: int | None) -> str:
    if token is None:
        return "the end"
    tokenizer = target.tokenizer
    return f"#{token}" if tokenizer is None else repr(tokenizer.decode([token]))


def print_sampled(found: Sampled) -> None:
    """Print the figures of a test of sampled tokens."""
    test = found.test
    console.out.print(
        f"{count(test.draws, 'token')}: the first {found.tokens} of {found.samples} answers to "
        f"each of {count(found.prompts, 'prompt')} · {tau_of(found.tau)}",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    for heading in ("token by the target", "should come", "came"):
        table.add_column(heading, justify="left" if heading.startswith("token") else "right")
    for each in test.ranks:
        last = each.last or "on"
        title = f"rank {each.first}" + ("" if last == each.first else f" to {last}")
        table.add_row(title, f"{each.expected:.2%}", f"{each.observed:.2%}")
    console.out.print(table)
    console.out.print(
        f"ranks p = {test.p_ranks:.2g} · contexts p = {test.p_contexts:.2g} "
        f"({test.repeated} of {test.contexts} met often enough) · together p = {test.p:.2g}",
        soft_wrap=True,
    )
    console.out.print(
        f"size {test.alpha:g}; found nine times out of ten:", style="dim", soft_wrap=True
    )
    for power in test.power:
        how = (
            "not found even if in all draws"
            if power.share is None
            else f"in {power.share:.0%} of the draws (total variation {power.distance:.3f})"
        )
        console.out.print(f"  {power.departure}: {how}", style="dim", soft_wrap=True)
