"""``eagle tree``: the token tree of one cycle, to see what was drafted and what was kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text
from rich.tree import Tree

from eagle.cli import console
from eagle.cli.decoding import (
    MinP,
    Raw,
    Seed,
    SpecOption,
    Target,
    Temperature,
    TopK,
    TopP,
    load_decoder,
    read_prompt,
    sampling_params,
    warn_if_lossy,
)
from eagle.cli.files import check_files
from eagle.cli.options import Json, Overrides

if TYPE_CHECKING:
    from eagle.decoding import Decoder, TracedCycle, TracedNode

EXAMPLES = console.examples(
    'eagle tree "Why is the sky blue?"',
    'eagle tree "Why is the sky blue?" --cycle 5 --svg tree.svg',
    'eagle tree "Why is the sky blue?" --set tree.branching=[4,2,2] --json',
)

_SHOWN = 60  # characters of the text before the root that are shown


def tree(
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT | -", help="What to answer; - reads it from standard input."
        ),
    ],
    cycle: Annotated[
        int, typer.Option("--cycle", metavar="K", min=1, help="Which cycle, from 1.")
    ] = 1,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg", metavar="FILE", help="Also draw it into an SVG file.", show_default=False
        ),
    ] = None,
    spec: SpecOption = "eagle",
    set_: Overrides = None,
    target: Target = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    raw: Raw = False,
    as_json: Json = False,
) -> None:
    """Show the token tree of one cycle: candidates, probabilities, and the accepted path.

    A candidate's draft probability is the draft head's, given the node above it; its target
    probability is the target's. Both are at the request's temperature, or at 1 where that is 0.
    """
    check_files(svg)
    prompt = read_prompt(prompt, raw=raw)
    params = sampling_params(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    from eagle.decoding import Trace
    from eagle.errors import RequestError

    trace = Trace()
    decoder = load_decoder(spec, set_, target, trace=trace)
    warn_if_lossy(decoder)
    # Just enough tokens for K cycles that accept all they can.
    enough = 1 + cycle * (decoder.resolved.tree.shape.depth + 1)
    text, done = "", 0
    params = params.model_copy(update={"max_new_tokens": enough})
    for done, event in enumerate(decoder.stream(prompt, params, raw=raw)):
        if done == cycle:
            break
        text += event.text
    if done < cycle:
        ends = f"after {done} cycle{'s' if done > 1 else ''}" if done else "before the first cycle"
        raise RequestError(f"--cycle {cycle}: the answer ends {ends}")
    traced = trace.cycle()
    title = f"cycle {cycle}" + (f", after {_shortened(text)!r}" if text else "")
    if svg is not None:
        from eagle.cli.tree.svg import draw
        from eagle.host import write_text

        write_text(svg, draw(traced, lambda token: _text(decoder, token), title))
        console.err.print(f"drawn into {escape(str(svg))}", style="dim", soft_wrap=True)
    if as_json:
        console.emit_json(_describe(decoder, traced, cycle, text))
    else:
        _print(decoder, traced, title)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else "…" + text[-_SHOWN:]


def _text(decoder: Decoder, token: int) -> str:
    """Return how a token is shown: quoted text, or its name where it is no text by itself."""
    tokenizer = decoder.target.tokenizer
    if tokenizer is None:
        return f"#{token}"
    text = tokenizer.decode([token])
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text else repr(text)


def _describe(decoder: Decoder, traced: TracedCycle, cycle: int, text: str) -> dict[str, Any]:
    return {
        "cycle": cycle,
        "text": text,
        "temperature": traced.temperature,
        "nodes": [{"text": _text(decoder, n.token), **asdict(n)} for n in traced.nodes],
        "bonus": {
            "text": _text(decoder, traced.bonus),
            "parent": traced.last,
            "token": traced.bonus,
            "target_prob": traced.bonus_prob,
        },
        "accepted": sum(node.accepted for node in traced.nodes) - 1,
        "spec": decoder.spec.model_dump(mode="json"),
        "lossless": decoder.resolved.lossless,
    }


def _print(decoder: Decoder, traced: TracedCycle, title: str) -> None:
    branches: dict[int, Tree] = {}
    for node in sorted(traced.nodes, key=lambda n: (n.depth, n.parent, n.rank)):
        label = _label(node, _text(decoder, node.token))
        guide = "green" if node.accepted else "dim"
        if node.depth == 0:
            branches[node.index] = Tree(label, guide_style=guide)
        else:
            branches[node.index] = branches[node.parent].add(label, guide_style=guide)
    bonus = Text.assemble(
        (_text(decoder, traced.bonus), "bold yellow"), ("  bonus token", "yellow"),
        (f"  target {traced.bonus_prob:.2f}", "dim"),
    )  # fmt: skip
    branches[traced.last].add(bonus)
    accepted, drafted = sum(n.accepted for n in traced.nodes) - 1, len(traced.nodes) - 1
    summary = f"{accepted} of {drafted} candidates accepted, and the bonus token"
    console.out.print(escape(title), style="bold", soft_wrap=True)
    console.out.print(branches[0])
    console.out.print(
        f"{summary}; probabilities at temperature {traced.temperature:g}", style="dim"
    )


def _label(node: TracedNode, text: str) -> Text:
    if node.depth == 0:
        return Text.assemble((text, "bold"), ("  root", "dim"))
    draft = "" if node.draft_prob is None else f"draft {node.draft_prob:.2f}  "
    label = Text.assemble(
        (text, "bold green" if node.accepted else ""),
        (f"  {draft}target {node.target_prob:.2f}", "dim"),
    )
    return label.append("  accepted", "green") if node.accepted else label
