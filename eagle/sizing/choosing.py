"""Trees that fit the machine: measured once, kept, and handed to builders that ask for it.

Knows where costs are kept and what they depend on; how they are measured is
`eagle.sizing.costing`'s business, and what a tree makes of them its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from eagle.assets import cache_dir, notify
from eagle.errors import PluginError
from eagle.host import hardware, versions, write_text
from eagle.plugin import (
    RATES_FILE,
    Budget,
    Costs,
    Fit,
    FittedTree,
    FollowsSlots,
    LearnsCosts,
    MeasuredHead,
    RankRates,
    Role,
    TreeBuilder,
    listed,
)
from eagle.runtime import made
from eagle.sizing.costing import measure_costs, measure_slots
from eagle.spec import Resolved
from eagle.target import Target, loading

__all__ = [
    "NO_FILES",
    "NO_FILES_HELP",
    "Account",
    "account",
    "cost_key",
    "fit_tree",
    "learn_costs",
    "measure",
    "rates_of",
    "recall",
]

log = logging.getLogger("eagle.sizing")

NO_FILES = "this draft head has no files in which could be kept how often it is right"
"""Why no size fits a head that is no `eagle.plugin.MeasuredHead`."""

NO_FILES_HELP = "Give its size in the spec instead of `size: auto`, or take a head with files."
"""What helps there; the tree is what was spoken of."""

_FORMAT = 2
# Of the target's configuration, what decides how long a pass takes.
_SIZES = (
    "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "num_local_experts", "num_experts",
    "num_experts_per_tok",
)  # fmt: skip


class _Kept(BaseModel):
    """What a file in the cache holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    measured_on: dict[str, Any]
    costs: Costs


@dataclass(frozen=True)
class Account:
    """Why a tree has the size that it has, or why that is not known.

    Attributes:
        rates: of the head; None where they were never measured.
        costs: of this machine; None where they were never measured.
        fit: the choice; None where one of the two is missing, or where nothing fits better than
            what the builder has by itself.
    """

    rates: RankRates | None
    costs: Costs | None
    fit: Fit[TreeBuilder] | None


def cost_key(
    resolved: Resolved, config: Any, dtype: torch.dtype, device: torch.device, slots: int = 1
) -> dict[str, Any]:
    """Return all that the costs of a cycle depend on, as JSON has it; no weight is needed for it.

    Args:
        resolved: the components.
        config: the target's text configuration.
        dtype: of the target's weights.
        device: where it is.
        slots: that a cycle runs over.
    """
    spec = resolved.spec
    strategies = {
        role.value: [
            f"{entry.name} ({entry.origin})",
            _describe_head(resolved) if role is Role.HEAD else spec.component(role).settings,
        ]
        for role, entry in resolved.strategies.items()
        if role is not Role.TREE
    }
    runtime, own = spec.runtime, spec.target
    cut = [own.tp_plan, loading.processes(), own.cut_draft] if own.tp_plan else [None, 1]
    key = {
        "format": _FORMAT,
        "hardware": hardware(device),
        "versions": versions(),
        "target": {size: getattr(config, size, None) for size in _SIZES},
        "dtype": str(dtype),
        "quantized": runtime.quantize or _method(config),
        "placement": cut,
        "strategies": strategies,
        "runtime": [runtime.compile, runtime.cuda_graph, resolved.capturable, runtime.max_length],
    }
    if slots > 1:
        key["slots"] = slots
    if device.type == "cpu" and runtime.compile is not False:
        key["passes"] = made(config, dtype)  # compiled, they take half the time
    found: dict[str, Any] = json.loads(json.dumps(key, default=str))
    return found


def _method(config: Any) -> str:
    """Return how the files of a target are quantized, or nothing."""
    own = getattr(config, "quantization_config", None)
    found = own.get("quant_method") if isinstance(own, dict) else getattr(own, "quant_method", None)
    return str(getattr(found, "value", found) or "")


def _describe_head(resolved: Resolved) -> Any:
    """Return what tells a head from a slower or quicker one: its configuration and settings.

    Not where its weights are, which do not matter for that.
    """
    head = resolved.head
    config = head.folder / "config.json" if isinstance(head, MeasuredHead) else None
    settings = dict(resolved.spec.head.settings)
    if config is not None and config.is_file():
        settings["weights"] = hashlib.sha256(config.read_bytes()).hexdigest()
    return settings


def _path(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "costs" / f"{digest[:20]}.json"


def recall(key: Mapping[str, Any]) -> Costs | None:
    """Return the costs that were measured under a key, None where there are none to rely on."""
    path = _path(key)
    try:
        kept = _Kept.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = " ".join(str(error).split())
        log.warning("%s cannot be used, as if nothing had been measured: %.200s", path, reason)
        return None
    return kept.costs if kept.measured_on == key else None


def measure(resolved: Resolved, target: Target) -> Costs:
    """Measure what a cycle costs on this machine, say so, and keep it in the cache.

    Args:
        resolved: the components; the head is loaded.
        target: the target.

    Raises:
        PluginError: a component raises.
    """
    with resolved.blaming():
        costs = measure_costs(resolved, target, lambda what: _tell(target, f"  {what}"))
    return _kept_costs(resolved, target, {1: costs})[1]


def _measure_slots(resolved: Resolved, target: Target, counts: list[int]) -> dict[int, Costs]:
    """Measure cycles over several slots, as many of these numbers as there is memory for."""
    while counts:
        try:
            with resolved.blaming():
                costs = measure_slots(
                    resolved, target, lambda what: _tell(target, f"  {what}"), counts
                )
            return _kept_costs(resolved, target, costs)
        except torch.OutOfMemoryError:
            log.warning(
                "what cycles over %d slots cost is not measured for want of memory", counts[-1]
            )
            if target.together is not None:
                return {}  # others may have had enough
            counts = counts[:-1]
    return {}


def _kept_costs(resolved: Resolved, target: Target, costs: dict[int, Costs]) -> dict[int, Costs]:
    if target.together is not None:
        costs = target.together.share(costs)
    for slots, each in costs.items():
        _keep(cost_key(resolved, target.config, target.dtype, target.device, slots), each)
    return costs


def _keep(key: Mapping[str, Any], costs: Costs) -> None:
    """Write costs to the cache, whole or not at all; without a cache they last for this process."""
    path = _path(key)
    text = _Kept(measured_on=dict(key), costs=costs).model_dump_json(indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n", shared=True)
    except OSError as error:
        log.warning("measured costs cannot be kept in %s: %s", path.parent, error.strerror)


def rates_of(resolved: Resolved) -> RankRates | None:
    """Return what was measured of a head's acceptance, if it was.

    Raises:
        CheckpointError: its file is damaged, or the head has no files.
    """
    head = resolved.head
    return RankRates.read(head.folder) if isinstance(head, MeasuredHead) else None


def account(resolved: Resolved, costs: Costs | None) -> Account:
    """Return what is known of a tree's size without measuring anything.

    Args:
        resolved: the components.
        costs: of this machine, if they are known.

    Raises:
        CheckpointError: the file of the head's rates is damaged.
        PluginError: the tree builder raises, or breaks its contract.
    """
    rates = rates_of(resolved)
    fit = _ask(resolved, Budget(rates, costs)) if rates and costs else None
    return Account(rates, costs, fit)


def fit_tree(resolved: Resolved, target: Target) -> Resolved:
    """Replace a tree builder that fits the machine by one of the size that does.

    What is not known of the machine is measured now, once, and kept in the cache. A head whose
    acceptance was not measured leaves the builder as it is, and that is said.

    Args:
        resolved: the components; the head is loaded.
        target: the target.

    Raises:
        CheckpointError: the file of the head's rates is damaged.
        PluginError: the tree builder raises, or breaks its contract.
    """
    if isinstance(resolved.tree, FollowsSlots):
        return _following(resolved)
    if not isinstance(resolved.tree, FittedTree):
        return resolved
    rates = rates_of(resolved)
    if rates is None:
        shape = resolved.tree.shape
        lacking = f"this head has no {RATES_FILE}"
        help_ = "Measure the head with `eagle bench ranks`."
        if not isinstance(resolved.head, MeasuredHead):
            lacking, help_ = NO_FILES, NO_FILES_HELP
        _tell(
            target,
            f"tree: its size is chosen by how often the draft head is right, and {lacking}; "
            f"so the tree has {shape.nodes} nodes and {shape.depth} levels. {help_}",
        )
        return resolved
    known = recall(cost_key(resolved, target.config, target.dtype, target.device))
    if target.together is not None:
        known = target.together.share(known)  # all have the same tree
    if known is None:
        _tell(
            target,
            "Measuring what a cycle costs on this machine, to choose the tree's size (once) ...",
        )
    fit = _ask(resolved, Budget(rates, known or measure(resolved, target)))
    if fit is None:
        return resolved
    if known is None:
        best = fit.chosen
        _tell(
            target,
            f"  chosen: {best.nodes} nodes, {best.depth} levels; {best.tokens:.2f} tokens expected "
            f"in {best.milliseconds:.2f} ms",
        )
    return replace(resolved, tree=fit.builder)


def _following(resolved: Resolved) -> Resolved:
    """Replace a tree builder by one that follows the number of slots, where rates are known."""
    rates, tree = rates_of(resolved), resolved.tree
    assert isinstance(tree, FollowsSlots)
    if rates is None:
        log.info(
            "the tree keeps its size for any number of slots, as the head has no %s", RATES_FILE
        )
        return resolved
    with resolved.blaming():
        builder = tree.follow(rates)
    _check_laws(resolved, builder, "follow")
    return replace(resolved, tree=builder)


def learn_costs(resolved: Resolved, target: Target, slots: int) -> None:
    """Tell a tree builder that asks for it what cycles over up to so many slots cost.

    What is not known is measured now, and kept, for 2, 4, 8, ... slots; the head's cache is
    allocated anew for that. For one slot nothing is measured: see `eagle.plugin.LearnsCosts`.

    Args:
        resolved: the components; the head is loaded.
        target: the target.
        slots: how many will be decoded at once.

    Raises:
        PluginError: a component raises.
    """
    tree = resolved.tree
    if not isinstance(tree, LearnsCosts):
        return
    wanted = [1 << power for power in range((slots - 1).bit_length() + 1)]
    known = {}
    for count in wanted:
        if count in tree.learned:
            continue
        key = cost_key(resolved, target.config, target.dtype, target.device, count)
        costs = recall(key)
        if target.together is not None:
            costs = target.together.share(costs)  # all measure, or none
        known[count] = costs
    if lacking := [count for count, costs in known.items() if costs is None and count > 1]:
        _tell(
            target,
            f"Measuring what cycles over up to {lacking[-1]} slots cost on this machine, to choose "
            "the tree's size (once) ...",
        )
        known |= _measure_slots(resolved, target, lacking)
    for count, costs in known.items():
        if costs is not None:
            with resolved.blaming():
                tree.learn(count, costs)


def _tell(target: Target, text: str) -> None:
    """Notify, once where several processes hold the target."""
    if target.leads:
        notify(text)


def _check_laws(resolved: Resolved, builder: TreeBuilder, method: str) -> None:
    """Raise `PluginError` where a builder draws by a law that the one before did not declare."""
    entry = resolved.strategies[Role.TREE]
    if extra := [law for law in builder.laws if law not in resolved.tree.laws]:
        raise PluginError(
            f"{entry}, {entry.origin}: {method}() returned a builder that draws siblings by "
            f"{listed(extra)}, which this one does not declare"
        )


def _ask(resolved: Resolved, budget: Budget) -> Fit[TreeBuilder] | None:
    """Ask the tree builder for its choice, and hold it to what it declared."""
    tree = resolved.tree
    assert isinstance(tree, FittedTree)
    with resolved.blaming():
        fit = tree.fit(budget)
    if fit is None:
        return None
    entry = resolved.strategies[Role.TREE]
    if not isinstance(fit, Fit):
        raise PluginError(
            f"{entry}, {entry.origin}: fit() returned a {type(fit).__name__}; it should return an "
            "eagle.plugin.Fit, or None"
        )
    _check_laws(resolved, fit.builder, "fit")
    return fit
