"""Whether passes over a tree cache are a model's own: the same texts, run in both ways.

It is what lets an architecture be served that nobody here has heard of. Knows how a target is
driven; knows no architecture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eagle.cache import Pages, Step
from eagle.errors import TargetError
from eagle.plugin import Scores, ancestor_mask

__all__ = ["check_servable", "wrong"]

_PARENTS = [[-1, 0, 0, 0, 1, 2, 3, 4, 5, 6]]
_DEPTHS = [[0, 1, 1, 1, 2, 2, 2, 3, 3, 3]]
_PATHS = [[0, 1, 4, 7], [0, 2, 5, 8], [0, 3, 6, 9]]
_NODES, _DEPTH = 10, 3
_PROMPT = 6
_REACHED = 64  # windows of up to as many positions are left behind by the prompt

# Relative distance of logits. Right models have under 1e-5 in float32.
_EXACT = {torch.float32: 1e-3, torch.float64: 1e-3}
# What quantizes its input rounds some numbers otherwise where passes differ in their last bits: in
# float32, too, most nodes are exact and a few are far off. Such models are held as in half
# precision.
# In half precision, over 72 families of four layers: the median over the tree's nodes is at most
# 1.2 times that of the model's own passes, or 1.8 roundings times the root of the layers where it
# has one kind of attention; a wrong mask or window, or sinks left out, give ten times as much. One
# or two nodes may be as far off as that, where a router sends them to another expert.
_NOISE, _ROUNDINGS = 3.0, 3.0
_STRAYS, _WORST, _WORST_NOISE = 2, 0.2, 1.5


# What attention is asked for by itself, with scores so large that leaving any of it out shows.
_LENGTH, _NEAR, _CAP, _SINK, _SPREAD = 30, 8, 1.5, 4.0, 4.0
_APART = 0.05  # relative; right backends have under 0.01 in bfloat16


def check_servable(target: Any, attention: Any) -> None:
    """Refuse, before any pass, what a backend or one device cannot serve.

    Args:
        target: an `eagle.target.Target`.
        attention: the backend to attend through.

    Raises:
        TargetError: with the reason.
    """
    name = target.info.name
    if target.spread and target.together is None:
        raise TargetError(
            f"the target {name!r} is spread over several devices, and a cycle, its caches and its "
            "draft head are on one; load it without a device_map, or cut it over processes with "
            "target.tp_plan: auto, to decode it"
        )
    missing = target.asked.modifiers - getattr(attention, "modifiers", frozenset())
    reason = attention.unsupported(target.device, target.dtype, target.head_dim)
    if missing:
        reason = f"it does not serve {' and '.join(sorted(missing))}, which its layers have"
    if reason:
        raise TargetError(f"the attention backend cannot serve {name!r}: {reason}")


def wrong(target: Any, attention: Any, forward: Any) -> str | None:
    """Return what is wrong with passes over a tree cache, in a sentence, or None.

    Args:
        target: an `eagle.target.Target`.
        attention: the backend to attend through.
        forward: what runs the passes.
    """
    if apart := _difference(target, attention, forward):
        return (
            f"{target.title} gives other logits over a tree cache than by itself ({apart}); "
            "decoding it would change what it says, so it is refused"
        )
    if off := _unserved(target, attention):
        return (
            f"the attention backend cannot serve {target.info.name!r}: {off}, which its layers have"
        )
    return None


def _difference(target: Any, attention: Any, forward: Any) -> str | None:
    """Return what is different in passes over a tree cache, or None.

    Args:
        target: an `eagle.target.Target`.
        attention: the backend to attend through.
        forward: what runs the passes.
    """
    vocabulary, device = target.info.vocab_size, target.device
    bounds = [window for window in target.asked.windows if window and window <= _REACHED]
    length = min(_PROMPT + max(bounds, default=0), target.capacity - _NODES)
    generator = torch.Generator().manual_seed(0)
    low = min(10, vocabulary // 2)
    tokens = torch.randint(low, vocabulary, (length + _NODES,), generator=generator).to(device)
    prompt, tree = tokens[:length], tokens[length:]
    paths = torch.tensor(_PATHS, device=device)
    texts = torch.cat((prompt.expand(3, -1), tree[paths]), dim=1)
    first = _own(target, texts, length)
    if first.isnan().any():
        return None  # reported with more to go by when text is generated

    zero = torch.zeros(1, dtype=torch.int64, device=device)
    rows = length + _NODES
    pages = Pages.whole(1, rows, device) if getattr(attention, "paged", False) else None
    cache = target.make_cache(1, rows, pages)
    read, _ = forward(prompt[None], Step.chain(zero, length, length), cache, attention)
    parents, depths = (torch.tensor(x, device=device) for x in (_PARENTS, _DEPTHS))
    step = Step.tree(zero + length, depths, ancestor_mask(parents, _DEPTH), rows)
    last, _ = forward(tree[None], step, cache, attention)
    start = target.logits(read[:, -1:])[:, 0].float().expand(3, 1, -1)
    found = torch.cat((start, target.logits(last)[0, paths].float()), dim=1)
    apart = _judged(found, [first], target)
    # What passes beside one pass, passes beside several: distances shrink, and bounds only grow.
    # Processes that hold a model together make the same passes, whatever each of them finds.
    if _is_exact(target) or (apart is None and target.together is None):
        return apart
    return _judged(found, [first, *_others(target, texts, length)], target)


def _unserved(target: Any, attention: Any) -> str | None:
    """Return how far a backend is off where layers ask for more than scaled scores, or None.

    What random texts make of a model's own weights need not show it: scores may stay below a cap,
    and what a cap or a sink changes below what half precision rounds.

    Args:
        target: an `eagle.target.Target`.
        attention: the backend, which says that it serves what the target's layers ask for.
    """
    asked, device = target.asked, target.device
    if not asked.modifiers:
        return None
    window = _NEAR if "window" in asked.modifiers else None
    cap = _CAP if "softcap" in asked.modifiers else None
    (heads, kv_heads), size = asked.heads, asked.keys[1]
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, spread: float = 1.0) -> Tensor:
        made = spread * torch.randn(shape, generator=generator)
        return made.to(device, target.dtype)

    rows = _LENGTH + _NODES
    query = random(1, heads, _NODES, size, spread=_SPREAD)
    keys, values = (random(1, kv_heads, rows, size) for _ in range(2))
    sinks = random(heads) + _SINK if "sinks" in asked.modifiers else None

    zero = torch.zeros(1, dtype=torch.int64, device=device)
    pages = Pages.whole(1, rows, device) if getattr(attention, "paged", False) else None
    store = target.make_cache(1, rows, pages).store
    first = store.locate(Step.chain(zero, _LENGTH, _LENGTH))
    store.write(0, keys[:, :, :_LENGTH], values[:, :, :_LENGTH], first)
    parents, depths = (torch.tensor(x, device=device) for x in (_PARENTS, _DEPTHS))
    step = Step.tree(zero + _LENGTH, depths, ancestor_mask(parents, _DEPTH), rows)
    placed = store.locate(step)
    read = store.write(0, keys[:, :, _LENGTH:], values[:, :, _LENGTH:], placed)
    within: dict[str, Any] = {} if window is None else {"window": window}
    plan = attention.plan(placed, heads, kv_heads, target.dtype, **within)
    options = {} if cap is None and sinks is None else {"scores": Scores(cap, sinks)}
    found = attention.attend(query, *read, plan, size**-0.5, **options).double()

    groups = heads // kv_heads
    whole, given = (x.double().repeat_interleave(groups, 1) for x in (keys, values))
    scores = query.double() @ whole.transpose(2, 3) * size**-0.5
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~step.mask(window), -torch.inf)
    if sinks is not None:
        lost = sinks.double()[None, :, None, None].expand(1, heads, _NODES, 1)
        scores = torch.cat((scores, lost), -1)
    expected = (scores.softmax(-1)[..., :rows] @ given).transpose(1, 2)
    apart = ((found - expected).norm() / expected.norm()).item()
    if apart <= _APART:
        return None
    return f"its values are off by {apart:.2g} with {' and '.join(sorted(asked.modifiers))}"


def _own(target: Any, texts: Tensor, length: int) -> Tensor:
    """Return logits of the last of the prompt and what follows, by the model's own pass."""
    with target.stock() as model:
        return _logits(model, texts, length)


def _others(target: Any, texts: Tensor, length: int) -> list[Tensor]:
    """Return them by further valid passes: text by text, and by another kind of attention.

    Where numbers are coarse, these differ, and by how much is what others are held to.
    """
    with target.stock() as model:
        others = [torch.cat([_logits(model, text[None], length) for text in texts])]
        used = model.config._attn_implementation
        try:
            model.set_attn_implementation("eager" if used == "sdpa" else "sdpa")
            others.append(_logits(model, texts, length))
        except (ImportError, RuntimeError, TypeError, ValueError):
            pass  # it has no other
        finally:
            model.set_attn_implementation(used)
        return others


def _logits(model: Any, texts: Tensor, length: int) -> Tensor:
    logits: Tensor = model(input_ids=texts, use_cache=False).logits
    return logits[:, length - 1 :].float()


def _is_exact(target: Any) -> bool:
    """Whether all valid passes of a model give nearly the same numbers."""
    return target.dtype in _EXACT and target.plain


def _judged(found: Tensor, own: list[Tensor], target: Any) -> str | None:
    """Return what is wrong with logits ``[paths, 2 + depth, V]`` of a tree, or None."""
    distance = torch.stack([_distance(found, other) for other in own]).amin(0)
    least = _EXACT.get(target.dtype, 0.0)
    if _is_exact(target):
        worst = distance.max().item()
        return None if worst <= least else f"relative difference {worst:.2g}"
    pairs = [_distance(one, other) for i, one in enumerate(own) for other in own[:i]]
    noise = torch.stack(pairs).amax(0) if pairs else torch.zeros_like(distance)
    drafted = slice(2, None)  # what is seen through the tree's mask, at positions of its own
    rounding = torch.finfo(target.dtype).eps / 2 * target.info.layers**0.5
    usual = max(_NOISE * noise[:, drafted].median().item(), _ROUNDINGS * rounding, least)
    most = max(_WORST_NOISE * noise.max().item(), _WORST)
    ordered = distance[:, drafted].flatten().sort().values
    middle, worst = ordered[len(ordered) // 2].item(), ordered[-1 - _STRAYS].item()
    if middle <= usual and worst <= most:
        return None
    name = str(target.dtype).removeprefix("torch.")
    return (
        f"relative difference {middle:.2g} in the median and {worst:.2g} and more, where valid "
        f"passes of {name} would have {usual:.2g} and {most:.2g}"
    )


def _distance(one: Tensor, other: Tensor) -> Tensor:
    relative: Tensor = (one - other).norm(dim=-1) / other.norm(dim=-1)
    return relative
