"""``eagle verify``: does this decoder say what its target would have said? Shown, not promised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eagle.cli import console
from eagle.cli.decoding import (
    SpecOption,
    Target,
    load_decoder,
    sampling_params,
    warn_if_lossy,
)
from eagle.cli.options import Json, Overrides, ServerUrl, settings_of
from eagle.cli.progress import progress_bar
from eagle.cli.verify.verdict import describe, show, verdict_of

if TYPE_CHECKING:
    from eagle.bench import Identity, Sampled

EXAMPLES = console.examples(
    "eagle verify",
    "eagle verify --target ./my-model --set head.weights=./my-head --prompts mt_bench.jsonl",
    "eagle verify --temperature 1 --samples 64 --tokens 8",
    "eagle verify --server http://127.0.0.1:8000 --target ./my-model",
    "eagle verify --spec chain --set target.dtype=float32 --batch 1 --json",
)

_TOKENS, _TESTED, _SAMPLES, _ALPHA = 128, 8, 48, 0.01


def verify(
    spec: SpecOption = "eagle",
    set_: Overrides = None,
    target: Target = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help='One prompt a line, or JSONL with {"turns": [...]}; by default eight of our own.',
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", metavar="N", min=1, help="Only the first N prompts.", show_default=False
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            metavar="T",
            help="0 takes the likeliest token always; 0 by default, with --server 1.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            help=f"At temperature 0: longest answer, in tokens; {_TOKENS} by default.",
            show_default=False,
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            metavar="K",
            min=1,
            help=f"Above 0: tokens of each answer that are tested; {_TESTED} by default.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            metavar="N",
            min=1,
            help=f"Above 0: answers to each prompt; {_SAMPLES} by default.",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="A",
            help=f"Above 0: chance of calling a right decoder wrong; {_ALPHA} by default.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            help="Prompts decoded at once; short for --set runtime.max_batch=N.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", help="The same seed, the same figures.")
    ] = 0,
    server: ServerUrl = None,
    as_json: Json = False,
) -> None:
    """Show whether a decoder says what its target would have said; with --server, a server.

    At temperature 0 its answers are compared with plain decoding and with transformers' generate,
    and each of its tokens with the target's own choice; a difference is told to be a numerical
    tie or a mistake. Above 0 the first tokens of many answers are tested against the target's
    distribution. Of a server each token is held against the target's own choice at temperature
    0; above it, and at 1 unless another is given, the test is the same. Exit status: 0 if it
    holds, 1 if it does not.
    """
    if temperature is None:
        temperature = 0.0 if server is None else 1.0
    if server is not None:
        _refuse_local(spec, batch)
    _refuse_idle(
        temperature,
        {"--max-new-tokens": max_new_tokens},
        {"--tokens": tokens, "--samples": samples, "--alpha": alpha},
    )
    params = sampling_params(
        temperature=temperature,
        seed=seed,
        max_new_tokens=_TOKENS if max_new_tokens is None else max_new_tokens,
    )
    alpha = _ALPHA if alpha is None else alpha
    texts = _prompts(prompts, limit, alpha)
    # What the generation config makes of logits is not what is verified here.
    settings = ["target.generation_config=ignore", *(set_ or ())]
    settings += [f"runtime.max_batch={batch}"] if batch else []
    if server is not None:
        from eagle.cli.verify.served import verify_server

        holds = verify_server(
            server,
            [*settings, *settings_of(None, target)],
            texts,
            temperature=temperature,
            max_new_tokens=params.max_new_tokens,
            samples=samples or _SAMPLES,
            tokens=tokens or _TESTED,
            alpha=alpha,
            seed=seed,
            as_json=as_json,
        )
        raise typer.Exit(0 if holds else 1)
    decoder = load_decoder(spec, settings, target)
    warn_if_lossy(decoder)
    from eagle.bench import verify_greedy, verify_sampled

    found: Identity | Sampled
    with progress_bar() as progress:
        if temperature == 0:
            found = verify_greedy(
                decoder, texts, max_new_tokens=params.max_new_tokens, progress=progress
            )
        else:
            found = verify_sampled(
                decoder,
                texts,
                temperature=temperature,
                samples=samples or _SAMPLES,
                tokens=tokens or _TESTED,
                alpha=alpha,
                seed=seed,
                progress=progress,
            )
    verdict = verdict_of(decoder, found)
    if as_json:
        console.emit_json(describe(decoder, found, temperature, verdict))
    else:
        show(decoder, found, temperature)
        style = "bold green" if found.holds else "bold red"
        console.out.print(verdict, style=style, soft_wrap=True, markup=False)
    raise typer.Exit(0 if found.holds else 1)


def _refuse_local(spec: str, batch: int | None) -> None:
    """Refuse options that say how to decode, which a server has settled."""
    from eagle.errors import RequestError

    for option, given in (("--spec", spec != "eagle"), ("--batch", batch)):
        if given:
            raise RequestError(f"{option} does not go with --server, which decodes as it does")


def _refuse_idle(temperature: float, greedy: dict[str, Any], sampled: dict[str, Any]) -> None:
    """Refuse options that would have no effect at this temperature."""
    from eagle.errors import RequestError

    where, idle = ("above 0", sampled) if temperature == 0 else ("0", greedy)
    for option, value in idle.items():
        if value is not None:
            raise RequestError(
                f"{option} goes with --temperature {where} only, which tests something else"
            )


def _prompts(file: Path | None, limit: int | None, alpha: float) -> list[str]:
    """Return what is to be answered, before anything is loaded for it."""
    from eagle.bench import PROMPTS, check_alpha, read_prompts

    check_alpha(alpha)
    return (list(PROMPTS) if file is None else read_prompts(file))[:limit]
