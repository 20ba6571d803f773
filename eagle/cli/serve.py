"""``eagle serve``: an OpenAI-compatible server, in the foreground, until it is told to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from eagle.cli import console
from eagle.cli.decoding import SpecOption, Target, load_decoder, warn_if_lossy
from eagle.cli.options import Overrides

if TYPE_CHECKING:
    from eagle.decoding import Decoder, Engine

EXAMPLES = console.examples(
    "eagle serve",
    "eagle serve --target ./my-model --set head.weights=./my-head --port 8080",
    "EAGLE_API_KEY=... eagle serve --host 0.0.0.0 --set runtime.max_batch=16",
    "torchrun --nproc-per-node 2 -m eagle.cli serve --target ./my-model --set target.tp_plan=auto",
)

_TERMINATED = 143  # the exit status of what SIGTERM ends, as shells have it


@contextmanager
def _ending() -> Iterator[None]:
    """Let SIGTERM end what has no way of its own to end, as Ctrl-C does; the next one at once.

    The first process of a container is not ended by a signal that it says nothing of.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@_ending()
def serve(
    spec: SpecOption = "eagle",
    set_: Overrides = None,
    target: Target = None,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets others reach it."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes one that is free."),
    ] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="EAGLE_API_KEY",
            help="What clients must show; better given as EAGLE_API_KEY, which nobody else sees.",
            show_default=False,
        ),
    ] = None,
    model_name: Annotated[
        str | None,
        typer.Option(
            "--model-name",
            metavar="NAME",
            help="What clients call the model; by default the target's own name.",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int,
        typer.Option(
            "--max-new-tokens",
            metavar="N",
            min=1,
            help="Longest answer of a chat that does not say how long it may be, in tokens.",
        ),
    ] = 1024,
    queue: Annotated[
        int,
        typer.Option(
            "--queue", metavar="N", min=1, help="Requests that may wait; more are sent away."
        ),
    ] = 256,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout", metavar="S", min=0.1, help="Seconds that a request may take, in all."
        ),
    ] = 600.0,
    max_body: Annotated[
        int,
        typer.Option("--max-body", metavar="BYTES", min=1, help="Longest body of a request."),
    ] = 4 << 20,
    warm_up: Annotated[
        bool,
        typer.Option(
            help="On a GPU, compile and capture what requests will need before the first comes."
        ),
    ] = True,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="S",
            min=0.0,
            help="Seconds that requests under way are given when the server is told to end.",
        ),
    ] = 30.0,
) -> None:
    """Serve a model over HTTP, by OpenAI's interface.

    Chats, completions, models, health and Prometheus' metrics; answers may be streamed. Logs are
    lines of JSON on stderr. The first Ctrl-C or SIGTERM lets requests under way end, a second
    cuts them off.
    """
    from eagle.errors import EagleError

    try:
        from eagle.serve import Settings, is_loopback, log_to, reserved, run
    except ImportError as error:
        raise EagleError(
            f"eagle serve needs {error.name}, which is not installed: "
            "pip install 'eagle-decoding[serve]'"
        ) from error
    if api_key is not None and not (api_key.strip() and api_key.isprintable()):
        raise EagleError("--api-key: should be a word that can be written into a header, not empty")
    began = time.perf_counter()
    # Before a model is loaded for nothing; of processes that hold it together, one has the port.
    first = os.environ.get("RANK", "0") == "0"
    with reserved(host, port) if first else nullcontext() as early:
        decoder = load_decoder(spec, set_, target)
        warn_if_lossy(decoder)
        from eagle.decoding import Engine

        engine = Engine(decoder, queue=queue)
        if not engine.leads:
            _follow(engine)
            return
        made = early or reserved(host, port)
        loopback = is_loopback(host)
        settings = Settings(
            model=model_name,
            api_key=api_key,
            loopback=loopback,
            default_tokens=max_new_tokens,
            max_body=max_body,
            timeout=timeout,
            grace=grace,
        )
        _note(_loaded(decoder, time.perf_counter() - began))
        if warm_up:
            _warm_up(engine)
        if not loopback and api_key is None:
            _note(f"anybody who reaches {host} may ask: there is no --api-key")
        log_to(sys.stderr)
        run(engine, settings, [made], told=_note)
    _note("ended")


def _follow(engine: Engine) -> None:
    """Do what the first process does until that ends; who is told to end tells that one, too."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, lambda *_: None)
    engine.close()


def _warm_up(engine: Engine) -> None:
    """Let no request wait for what can be compiled and captured before."""
    began = time.perf_counter()
    if engine.warm_up():
        count = engine.decoder.captured
        _note(f"captured {count} passes in {time.perf_counter() - began:.1f} s")


def _loaded(decoder: Decoder, seconds: float) -> str:
    """Return what was loaded, and how long it took."""
    spec, target = decoder.spec, decoder.target
    dtype = str(target.dtype).removeprefix("torch.")
    parts = [
        f"loaded {target.info.name} ({dtype}, {target.device.type})",
        f"spec {spec.name}: head {spec.head.name}, tree {spec.tree.name}, "
        f"acceptance {spec.acceptance.name}",
        f"{decoder.max_batch} slots of up to {decoder.capacity} tokens",
        f"in {seconds:.1f} s",
    ]
    return " · ".join(parts)


def _note(text: str) -> None:
    console.err.print(text, style="dim", soft_wrap=True, markup=False)
