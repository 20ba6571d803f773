"""``eagle verify --server``: a server's answers, held against a target that is loaded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape

from eagle.cli import console
from eagle.cli.decoding import working
from eagle.cli.verify.progress import progress_bar
from eagle.cli.verify.verdict import print_sampled

if TYPE_CHECKING:
    from eagle.bench import Sampled

__all__ = ["verify_server"]


def verify_server(
    url: str,
    settings: Sequence[str],
    prompts: Sequence[str],
    *,
    temperature: float,
    samples: int,
    tokens: int,
    alpha: float,
    seed: int,
    as_json: bool,
) -> bool:
    """Test a server, print what was found, and return whether it holds.

    Args:
        url: where the server is.
        settings: what is changed of the shipped spec, for the target that is loaded here.
        prompts: what it is asked.
        temperature: above 0.
        samples: answers to each prompt.
        tokens: of each answer that are tested.
        alpha: size of the test.
        seed: of the samples and of the simulations.
        as_json: print JSON.
    """
    from eagle.bench import verify_served
    from eagle.remote import Server
    from eagle.spec import load_spec
    from eagle.target import load_target

    server = Server(url)
    model = str(server.model().get("id", ""))  # before anything is loaded for nobody
    spec = load_spec("plain", settings)
    with working(f"loading {spec.target.model}"):
        target = load_target(spec.target, spec.folder, spec.runtime.quantize)
    with progress_bar() as progress:
        found = verify_served(
            target,
            server,
            model,
            prompts,
            temperature=temperature,
            samples=samples,
            tokens=tokens,
            alpha=alpha,
            seed=seed,
            progress=progress,
        )
    verdict = _verdict(found)
    dtype = str(target.dtype).removeprefix("torch.")
    if as_json:
        shown = {"holds": found.holds, "verdict": verdict, "temperature": temperature}
        where = {"server": url, "model": model, "target": target.info.name, "dtype": dtype}
        console.emit_json({**shown, "sampled": asdict(found), **where})
    else:
        console.out.print(
            f"[bold]{escape(model)} at {escape(url)}[/], held against {escape(target.info.name)} "
            f"({dtype}, {target.device.type}), temperature {temperature:g}",
            soft_wrap=True,
        )
        print_sampled(found)
        style = "bold green" if found.holds else "bold red"
        console.out.print(verdict, style=style, soft_wrap=True, markup=False)
    return found.holds


def _verdict(found: Sampled) -> str:
    p, alpha = f"p = {found.test.p:.2g}", f"{found.test.alpha:g}"
    if found.holds:
        return f"consistent with the target's distribution: {p}, not below {alpha}"
    return f"not the target's distribution: {p}, below {alpha}"
