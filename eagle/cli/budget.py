"""How the size of a tree was chosen for this machine, or what is lacking for that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from eagle.cli import console

if TYPE_CHECKING:
    from eagle.plugin import Costs, Fit, RankRates, TreeBuilder
    from eagle.sizing import Account
    from eagle.spec import DecoderSpec, Resolved

__all__ = ["show_choice"]


def show_choice(spec: DecoderSpec, *, measure: bool) -> None:
    """Explain on stderr the choice of a tree whose size fits the machine; other trees need none.

    Args:
        spec: the spec.
        measure: measure this machine first, also where that has been done.

    Raises:
        SpecError: something is to be measured for a tree that takes no notice of it, or for a head
            of which too little is known.
        EagleError: see `eagle.decoding.Decoder.from_spec`, where something is measured.
    """
    from eagle.errors import EagleError, SpecError
    from eagle.plugin import FittedTree, default_registry
    from eagle.spec import resolve

    try:
        fitted = isinstance(resolve(spec, default_registry()).tree, FittedTree)
    except EagleError:
        if measure:
            raise
        return  # a file is shown as it is, right or wrong: `eagle spec check` says what is
    if not fitted:
        if measure:
            raise SpecError(
                f"--measure is for trees whose size is chosen for the machine, and "
                f"{spec.tree.name!r} as configured is none of them; try --set tree.size=auto"
            )
        return
    try:
        resolved, account = _account(spec, measure=measure)
    except EagleError as error:
        if measure:
            raise
        _say(f"What this tree's size would be here is not known: {error}")
        return
    _explain(resolved, account)


def _account(spec: DecoderSpec, *, measure: bool) -> tuple[Resolved, Account]:
    from eagle.cli.decoding import working
    from eagle.decoding import resolve_for
    from eagle.errors import SpecError
    from eagle.plugin import MeasuredHead, default_registry
    from eagle.sizing import NO_FILES, NO_FILES_HELP, account, cost_key, rates_of, recall
    from eagle.sizing import measure as measure_costs
    from eagle.target import load_target, loading, resolve_device, resolve_dtype

    source = loading.locate(spec.target, spec.folder)
    resolved = resolve_for(spec, default_registry())
    if not measure:
        device = resolve_device(spec.target.device)
        config = loading.describe(source)[1]
        key = cost_key(resolved, config, resolve_dtype(spec.target.dtype, device), device)
        return resolved, account(resolved, recall(key))
    if not isinstance(resolved.head, MeasuredHead):
        raise SpecError(f"--measure: {NO_FILES}, by which the tree is chosen. {NO_FILES_HELP}")
    if rates_of(resolved) is None:
        raise SpecError(
            "--measure: what a cycle costs here is of no use yet, as this draft head's acceptance "
            "was never measured; begin with `eagle bench ranks`"
        )
    with working(f"loading {spec.target.model}"):
        target = load_target(spec.target, spec.folder, spec.runtime.quantize)
        target.probe(resolved.attention)
        resolved.head.load(target, resolved.attention)
    return resolved, account(resolved, measure_costs(resolved, target))


def _explain(resolved: Resolved, account: Account) -> None:
    from eagle.plugin import MeasuredHead
    from eagle.sizing import NO_FILES, NO_FILES_HELP

    shape = resolved.tree.shape
    fallback = f"{shape.nodes} nodes and {shape.depth} levels"
    if not isinstance(resolved.head, MeasuredHead):
        _say(f"{NO_FILES[0].upper()}{NO_FILES[1:]}, so the tree has {fallback}. {NO_FILES_HELP}")
    elif account.rates is None:
        _say(
            f"The draft head has no measured acceptance, so the tree has {fallback}. "
            "Measure it: eagle bench ranks SPEC"
        )
    elif account.costs is None:
        _say(
            "This machine has not been measured for this target, head and runtime. The first "
            "decoder does it, or: eagle spec show SPEC --measure"
        )
    elif account.fit is None:
        _say(f"No size that could be measured fits better than {fallback}.")
    else:
        _print(account.fit, account.costs, account.rates)
        tree = {"name": resolved.spec.tree.name, **account.fit.chosen.settings}
        _say(f"as a spec says it: tree: {_flow(tree)}")


def _say(text: str) -> None:
    console.err.print(escape(text), soft_wrap=True)


def _print(fit: Fit[TreeBuilder], costs: Costs, rates: RankRates) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("nodes", "levels", "ms a cycle", "verify", "tokens", "tokens/s", ""):
        table.add_column(column, justify="right" if column else "left")
    for option in fit.options:
        chosen = option == fit.chosen
        table.add_row(
            str(option.nodes),
            str(option.depth),
            f"{option.milliseconds:.2f}",
            f"{costs.verify(option.nodes):.2f}",
            f"{option.tokens:.2f}",
            f"{option.rate:.0f}",
            "chosen" if chosen else "",
            style="bold green" if chosen else "",
        )
    _say("The best tree of each depth, by expected tokens per second on this machine:")
    console.err.print(table)
    passes = ", ".join(f"{size}: {ms:.2f}" for size, ms in costs.verify.points)
    levels = ", ".join(f"{size}: {ms:.2f}" for size, ms in costs.level.points)
    _say(f"ms measured at {costs.context} tokens of text: verification by nodes {passes};")
    _say(
        f"first level {costs.begin:.2f}, each further one by nodes extended {levels}; "
        f"accepting and committing {costs.rest:.2f}"
    )
    _say(f"acceptance: {rates.source}, {rates.positions:,} positions, temperature 0")


def _flow(settings: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {value}" for key, value in settings.items()) + "}"
