"""``eagle verify --server``: a server's answers, held against a target that is loaded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape

from eagle.cli import console
from eagle.cli.decoding import working
from eagle.cli.progress import progress_bar
from eagle.cli.verify.verdict import count, print_choices, print_sampled, tau_of

if TYPE_CHECKING:
    from eagle.bench import Sampled, ServedGreedy
    from eagle.target import Target

__all__ = ["verify_server"]


def verify_server(
    url: str,
    settings: Sequence[str],
    prompts: Sequence[str],
    *,
    temperature: float,
    max_new_tokens: int,
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
        temperature: at 0 each token is held against the target's choice, above 0 the first tokens
            of many answers against its distribution.
        max_new_tokens: at 0, longest answer.
        samples: above 0, answers to each prompt.
        tokens: above 0, tokens of each answer that are tested.
        alpha: above 0, size of the test.
        seed: above 0, of the samples and of the simulations.
        as_json: print JSON.
    """
    from eagle.bench import ServedGreedy, verify_served, verify_served_greedy
    from eagle.remote import Server
    from eagle.spec import load_spec
    from eagle.target import load_target

    server = Server(url)
    model = str(server.model().get("id", ""))  # before anything is loaded for nobody
    spec = load_spec("plain", settings)
    with working(f"loading {spec.target.model}"):
        target = load_target(spec.target, spec.folder, spec.runtime.quantize)
    with progress_bar() as progress:
        if temperature == 0:
            found: ServedGreedy | Sampled = verify_served_greedy(
                target, server, model, prompts, max_new_tokens=max_new_tokens, progress=progress
            )
        else:
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
    greedy = isinstance(found, ServedGreedy)
    verdict = _greedy_verdict(found) if isinstance(found, ServedGreedy) else _verdict(found)
    dtype = str(target.dtype).removeprefix("torch.")
    if as_json:
        shown = {"holds": found.holds, "verdict": verdict, "temperature": temperature}
        where = {"server": url, "model": model, "target": target.info.name, "dtype": dtype}
        kind = "greedy" if greedy else "sampled"
        console.emit_json({**shown, kind: asdict(found), **where})
    else:
        console.out.print(
            f"[bold]{escape(model)} at {escape(url)}[/], held against {escape(target.info.name)} "
            f"({dtype}, {target.device.type}), temperature {temperature:g}",
            soft_wrap=True,
        )
        if isinstance(found, ServedGreedy):
            _print_greedy(target, found)
        else:
            print_sampled(found)
        style = "bold green" if found.holds else "bold red"
        console.out.print(verdict, style=style, soft_wrap=True, markup=False)
    return found.holds


def _print_greedy(target: Target, found: ServedGreedy) -> None:
    same = found.tokens - len(found.strays)
    ties = len(found.strays) - len(found.mistakes)
    console.out.print(
        f"{same} of {found.tokens} tokens to {count(found.prompts, 'prompt')} are the target's "
        f"choice, {ties} tied, {len(found.mistakes)} mistaken · {tau_of(found.tau)} · "
        f"noise of the target's own passes {found.noise:.2g} (median)",
        soft_wrap=True,
    )
    print_choices(target, found.strays)


def _greedy_verdict(found: ServedGreedy) -> str:
    if found.mistakes:
        differences = count(len(found.mistakes), "token")
        return f"does not hold: {differences} beyond what numerical noise explains"
    if found.strays:
        return f"holds: {count(len(found.strays), 'difference')}, each of them a numerical tie"
    return "holds: every token is the target's choice"


def _verdict(found: Sampled) -> str:
    p, alpha = f"p = {found.test.p:.2g}", f"{found.test.alpha:g}"
    if found.holds:
        return f"consistent with the target's distribution: {p}, not below {alpha}"
    return f"not the target's distribution: {p}, below {alpha}"
