"""``eagle generate``: the main job, on one prompt; and, if asked, how much faster it is done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eagle.cli import console
from eagle.cli.compiling import suggest
from eagle.cli.decoding import (
    Logprobs,
    MaxNewTokens,
    MinP,
    OwnSeed,
    Raw,
    SpecOption,
    Stop,
    Target,
    Temperature,
    TopK,
    TopP,
    figures,
    load_decoder,
    read_prompt,
    sampling_params,
    warn_if_lossy,
    working,
)
from eagle.cli.options import Json, Overrides, Template, template_of
from eagle.cli.reporting import comparison_table, describe, logprobs_table, remark

if TYPE_CHECKING:
    from eagle.bench import Comparison
    from eagle.cycle import Processors
    from eagle.decoding import Decoder, Result
    from eagle.plugin import SamplingParams

EXAMPLES = console.examples(
    'eagle generate "Why is the sky blue?"',
    "cat question.txt | eagle generate - --temperature 0.7 --seed 1",
    'eagle generate "Once upon a time" --raw --stop "The end"',
    'eagle generate "Why is the sky blue?" --spec chain --set tree.depth=4 --json',
    'eagle generate "What is 7 * 8?" --target ./qwen3 --template enable_thinking=false',
    'eagle generate "Why is the sky blue?" --logprobs 3',
    'eagle generate "Is the sky blue?" --regex "Yes|No"',
    'eagle generate "Why is the sky blue?" --compare',
    "eagle generate --compare --prompts mt_bench.jsonl --max-new-tokens 128",
)


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="[PROMPT | -]",
            help="What to answer; - reads it from standard input.",
            show_default=False,
        ),
    ] = None,
    spec: SpecOption = "eagle",
    set_: Overrides = None,
    target: Target = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: OwnSeed = None,
    stop: Stop = None,
    logprobs: Logprobs = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            "--json-schema",
            metavar="FILE",
            help="Answer with JSON that is valid by this schema.",
            show_default=False,
        ),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option(
            "--regex",
            metavar="PATTERN",
            help="Answer with what this regular expression matches as a whole.",
            show_default=False,
        ),
    ] = None,
    raw: Raw = False,
    template: Template = None,
    as_json: Json = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Also decode plainly, here and with transformers' generate; print speed-ups.",
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help='With --compare, many prompts: one a line, or JSONL with {"turns": [...]}.',
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(
            "--repeats",
            metavar="N",
            min=1,
            help="With --compare: rounds a prompt; 1 by default.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Answer a prompt, as the target would, in fewer passes.

    The answer goes to stdout as it comes, and one line of figures to stderr.
    """
    texts = _prompts(prompt, prompts, compare=compare, raw=raw)
    _refuse_idle_repeats(repeats, compare=compare)
    params = sampling_params(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        stop=tuple(stop or ()),
        logprobs=logprobs,
    )
    schema = _schema(json_schema, regex, compare=compare)
    given = template_of(template)
    if given and raw:
        raise _idle_template()
    # What is compared is what a decoder comes to after many answers.
    decoder = load_decoder(spec, set_, target, tokens=None if compare else max_new_tokens)
    warn_if_lossy(decoder)
    answer = None
    if prompts is None:
        rules = _rules(decoder, schema, regex)
        own = _with_seed(decoder, params)
        answer = _stream(decoder, texts[0], own, rules, raw=raw, template=given, show=not as_json)
        drawn = answer.seed if seed is None and temperature > 0 else None
        console.err.print(figures(answer.stats, drawn), style="dim", soft_wrap=True)
        suggest(decoder)
        if answer.logprobs is not None and not as_json:
            console.out.print(logprobs_table(decoder, answer.logprobs))
    comparison = None
    if compare:
        comparison = _compare(decoder, texts, params, repeats or 1, raw=raw, template=given)
    if as_json:
        console.emit_json(describe(decoder, answer, comparison))
    elif comparison is not None:
        console.out.print(comparison_table(decoder, comparison))
        remark(decoder, comparison)


def _prompts(prompt: str | None, file: Path | None, *, compare: bool, raw: bool) -> list[str]:
    """Return the prompts, or say which of the two ways to give them was not kept to."""
    from eagle.errors import RequestError

    if file is not None:
        if not compare:
            raise RequestError("--prompts goes with --compare only; give one prompt, or add it")
        if prompt is not None:
            raise RequestError("--prompts: give either a prompt or a file of them, not both")
        from eagle.bench import read_prompts

        return read_prompts(file)
    if prompt is None:
        raise RequestError(
            "the prompt is missing; give what to answer, or - to read it from standard input"
        )
    return [read_prompt(prompt, raw=raw)]


def _refuse_idle_repeats(repeats: int | None, *, compare: bool) -> None:
    from eagle.errors import RequestError

    if repeats is not None and not compare:
        raise RequestError("--repeats goes with --compare only; leave it out, or add that")


def _idle_template() -> Exception:
    from eagle.errors import RequestError

    return RequestError("--template goes with a chat template, which --raw leaves out; drop one")


def _schema(file: Path | None, pattern: str | None, *, compare: bool) -> str | None:
    """Return the text of the schema's file, or say what does not go with a grammar."""
    from eagle.errors import RequestError

    if file is not None and pattern is not None:
        raise RequestError("--json-schema and --regex: an answer follows one of them; drop one")
    if compare and (file is not None or pattern is not None):
        option = "--regex" if file is None else "--json-schema"
        raise RequestError(f"{option} does not go with --compare; leave one of them out")
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"--json-schema {file}: {why}") from error


def _rules(decoder: Decoder, schema: str | None, pattern: str | None) -> Processors | None:
    """Return what holds an answer to a grammar, if one is asked for."""
    if schema is None and pattern is None:
        return None
    from eagle import structured

    tokenizer = decoder.target.tokenizer
    if schema is not None:
        return [structured.json_schema(tokenizer, schema)]
    return [structured.regex(tokenizer, pattern or "")]


def _with_seed(decoder: Decoder, params: SamplingParams) -> SamplingParams:
    """Return parameters with a seed that is drawn here, where none was given and one matters.

    The decoder is given it, so that it says the same when the user gives it again: with a seed that
    a request draws for itself, a tree may follow the batch.
    """
    from eagle.plugin import fresh_seed

    if params.seed is not None or params.temperature == 0:
        return params
    seed, together = fresh_seed(), decoder.target.together
    # Processes that hold a target together are asked for the same.
    return params.model_copy(update={"seed": together.share(seed) if together else seed})


def _stream(
    decoder: Decoder,
    prompt: str,
    params: SamplingParams,
    processors: Processors | None,
    *,
    raw: bool,
    template: dict[str, Any] | None,
    show: bool,
) -> Result:
    """Answer a prompt, showing the text as it becomes certain."""
    text, result = "", None
    for event in decoder.stream(
        prompt, params, processors=processors, raw=raw, chat_template_kwargs=template
    ):
        text, result = event.text or text, event.result
        if show:
            print(event.text, end="", flush=True)
    if show and not text.endswith("\n"):
        print(flush=True)
    assert result is not None  # the last event has it
    return result


def _compare(
    decoder: Decoder,
    prompts: list[str],
    params: SamplingParams,
    repeats: int,
    *,
    raw: bool,
    template: dict[str, Any] | None,
) -> Comparison:
    from eagle.bench import compare_decoder

    with working("comparing") as status:

        def progress(done: int, total: int) -> None:
            if status is not None:
                status.update(f"comparing, {done} of {total} rounds done ...")

        return compare_decoder(
            decoder,
            prompts,
            params,
            repeats=repeats,
            raw=raw,
            template=template,
            progress=progress,
        )
