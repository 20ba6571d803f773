"""What the commands that decode have in common: options, loading, the line of figures.

Like every module of the command line it imports nothing heavy at its top.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.markup import escape

from eagle.cli import console
from eagle.cli.collecting import without_collection
from eagle.cli.options import settings_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pydantic import BaseModel

    from eagle.decoding import Decoder, Stats, Trace
    from eagle.plugin import SamplingParams
    from eagle.spec import DecoderSpec

__all__ = [
    "Logprobs",
    "MaxNewTokens",
    "MinP",
    "OwnSeed",
    "Raw",
    "Seed",
    "SpecOption",
    "Stop",
    "Target",
    "Temperature",
    "TopK",
    "TopP",
    "checked",
    "figures",
    "load_decoder",
    "read_prompt",
    "sampling_params",
    "uncompiled",
    "warn_if_lossy",
    "working",
]

_Model = TypeVar("_Model", bound="BaseModel")

# Tokens, some 1,400 cycles. In each, a compiled verification saves about 3 ms on an H100, at the
# 135M as at the 7B shape; finding compiled code again takes 9 s there, and making it a minute.
_WORTH_COMPILING = 4096

SpecOption = Annotated[
    str,
    typer.Option("--spec", metavar="NAME|FILE", help="Decoder spec: a shipped one, or YAML."),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="ID|PATH",
        help="Target model: Hub id, folder or GGUF file; short for --set target.model=...",
        show_default=False,
    ),
]
MaxNewTokens = Annotated[
    int, typer.Option("--max-new-tokens", metavar="N", help="Longest answer, in tokens.")
]
# Bounds are checked by `SamplingParams`, where they are defined, rather than here once more.
Temperature = Annotated[
    float, typer.Option("--temperature", metavar="T", help="0 takes the likeliest token always.")
]
TopK = Annotated[
    int, typer.Option("--top-k", metavar="K", help="Only the K likeliest tokens; 0 is off.")
]
TopP = Annotated[
    float,
    typer.Option("--top-p", metavar="P", help="Only the likeliest tokens of mass P; 1 is off."),
]
MinP = Annotated[
    float,
    typer.Option("--min-p", metavar="P", help="Only tokens P times as likely as the likeliest."),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        metavar="K",
        help="Also print the target's log probability of each token, and of the K likeliest.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="The same seed, the same answer.")]
OwnSeed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        help="The same seed, the same answer; without one, each answer draws its own.",
        show_default=False,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop",
        metavar="STR",
        help="End before this text; may be repeated.",
        show_default=False,
    ),
]
Raw = Annotated[
    bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
]


def sampling_params(**given: Any) -> SamplingParams:
    """Return checked sampling parameters.

    Raises:
        RequestError: naming the option that is out of bounds.
    """
    with without_collection():
        from eagle.plugin import SamplingParams

    return checked(SamplingParams, given)


def checked(model: type[_Model], given: dict[str, Any]) -> _Model:
    """Return a pydantic model of what options of the same names were given.

    Raises:
        RequestError: naming the option that is wrong.
    """
    from pydantic import ValidationError

    from eagle.errors import RequestError
    from eagle.plugin import explain

    try:
        return model(**given)
    except ValidationError as error:
        path, problem = next(iter(explain(error, model, given).items()))
        option = "--" + str(path[0]).replace("_", "-")
        raise RequestError(f"{option}: {problem}") from error


def read_prompt(prompt: str, *, raw: bool) -> str:
    """Return a prompt, read from standard input where it is given as ``-``.

    Raises:
        RequestError: it is no text, or empty: there is nothing to answer or, with *raw*, nothing
            to continue. Known before anything is loaded for it.
    """
    from eagle.errors import RequestError

    if prompt == "-":
        if sys.stdin is None:
            raise RequestError("standard input is closed, so no prompt can be read from it")
        try:
            prompt = sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise RequestError(
                f"the prompt on standard input is not UTF-8 text (byte {error.start})"
            ) from error
    if not (prompt if raw else prompt.strip()):
        raise RequestError("the prompt is empty; give at least one word")
    return prompt


def load_decoder(
    spec: str,
    overrides: Sequence[str] | None,
    target: str | None,
    *,
    tokens: int | None = None,
    trace: Trace | None = None,
) -> Decoder:
    """Load what a command decodes with, telling on stderr what takes the time.

    Args:
        spec: name or file of a spec.
        overrides: of ``--set``.
        target: of ``--target``.
        tokens: the most that will be decoded; None where nobody knows.
        trace: what is to watch the decoder.
    """
    settings = settings_of(overrides, target)
    # Ordered so that a mistake in the spec shows before transformers is imported, which takes
    # most of the start, and before the embedded model is fetched.
    with working("loading"), without_collection():
        from eagle.plugin import default_registry
        from eagle.spec import load_spec, resolve

        loaded = load_spec(spec, settings)
        console.follow(loaded.target.tp_plan)
        resolve(loaded, default_registry())
        from eagle.target import loading
    # The first time ever it fetches, with a progress bar of its own.
    loading.locate(loaded.target, loaded.folder)
    with working(f"loading {loaded.target.model}"), without_collection():
        from eagle.decoding import Decoder

        if tokens is not None and tokens < _WORTH_COMPILING:
            loaded = uncompiled(loaded)
        return trace.decoder(loaded) if trace else Decoder.from_spec(loaded)


def uncompiled(spec: DecoderSpec) -> DecoderSpec:
    """Return a spec that does not compile on a GPU, unless it says that it wants to.

    Cycles are captured as CUDA graphs all the same. On a CPU, where compiled code is only used if
    it is there already, nothing changes.
    """
    fitted = spec.tree.settings.get("size") == "auto"  # to the costs of compiled cycles
    if spec.runtime.compile != "auto" or fitted or not _on_a_gpu(spec):
        return spec
    runtime = spec.runtime.model_copy(update={"compile": False})
    return spec.model_copy(update={"runtime": runtime})


def _on_a_gpu(spec: DecoderSpec) -> bool:
    from eagle.target import resolve_device

    return resolve_device(spec.target.device).type == "cuda"


def working(what: str) -> AbstractContextManager[Any]:
    """Show on stderr what is being done; on a terminal, while it is being done only."""
    if console.err.is_terminal:
        return console.err.status(f"{escape(what)} ...")
    return nullcontext()


def figures(stats: Stats, seed: int | None = None) -> str:
    """Return the figures of an answer in one line, and its seed where that is to be known."""
    parts = [_count(stats.new_tokens, "token"), f"{stats.tokens_per_second:.1f} tokens/s"]
    if stats.cycles:
        parts += [f"tau {stats.tau:.2f}", _count(stats.cycles, "cycle")]
    parts.append(f"first token {stats.time_to_first_token:.2f} s")
    if seed is not None:
        parts.append(f"seed {seed}")
    return " · ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def warn_if_lossy(decoder: Decoder) -> None:
    """Say so, on stderr, where the acceptance rule changes the output distribution."""
    if not decoder.resolved.lossless:
        rule = decoder.spec.acceptance.name
        console.err.print(
            f"[yellow]not lossless:[/] the acceptance rule {escape(repr(rule))} changes what the "
            "target would say",
            soft_wrap=True,
        )
