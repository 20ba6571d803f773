"""Tree attention through a split-KV kernel in Triton, and packed prompts through one of their own.

Knows which passes suit the kernels, and makes each one operator for `torch.compile`; other passes
of many entries go through SDPA.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch
from torch import Tensor

from eagle.plugin import (
    BLOCK,
    BuildContext,
    Scores,
    Step,
    StrategyConfig,
    gathered,
    multiprocessors,
    shared_memory,
)
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig, SdpaPlan
from eagle_plugins.attention.tiling import choose_prompt_tiling, choose_tiling, most_tiles

__all__ = [
    "DTYPES",
    "MAX_HEAD_DIM",
    "MAX_NODES",
    "DensePlan",
    "TreePlan",
    "Triton",
    "TritonConfig",
    "prompt_attention",
    "tree_attention",
]

MAX_NODES = 128
"""Passes of more entries read a prompt: they are bound by arithmetic, which SDPA does better."""

MAX_HEAD_DIM = 256
"""A tile of larger heads would not fit into a multiprocessor."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""What the kernel multiplies."""

_OLDEST = (8, 0)  # compute capability: Triton compiles for nothing older


@dataclass(frozen=True)
class TreePlan:
    """What all layers of one pass attend by.

    Attributes:
        step: of the pass, its tail contiguous.
        tickets: int32, zeros, by which programs that work on one tile count each other.
        window: positions that an entry sees back, its own included, or None.
    """

    step: Step
    tickets: Tensor
    window: int | None = None


@dataclass(frozen=True)
class DensePlan:
    """What all layers of a pass attend by that goes through SDPA, over rows in blocks.

    Attributes:
        step: of the pass.
        plan: of `Sdpa` for it.
    """

    step: Step
    plan: SdpaPlan


class TritonConfig(StrategyConfig):
    """`triton` has no settings."""


class Triton:
    """Reads each slot's keys and values once, and only as far as the slot is filled.

    Its plan is a `TreePlan`, or one of `Sdpa` for a pass of many entries, in a `DensePlan` where
    rows lie in blocks. Passes of one backend must follow each other, as those of a decoder do:
    programs count each other in memory that all of them share.

    Attributes:
        bounded: rows of the span that no slot has filled cost nothing.
        paged: it finds rows in blocks, by `eagle.cache.Step.table`.
        packs: it attends in packed passes.
    """

    capturable = True
    bounded = True
    modifiers = frozenset({"window", "softcap", "sinks"})
    paged = True
    packs = True

    def __init__(self, config: TritonConfig, context: BuildContext) -> None:
        self._sdpa = Sdpa(SdpaConfig(), context)
        self._tickets: Tensor | None = None

    def packs_unseen(self, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether the host is not asked for the pieces of a packed pass over blocks."""
        return head_dim <= MAX_HEAD_DIM

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return what of this the kernel is not made for, or None."""
        if dtype not in DTYPES:
            names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
            return f"the Triton kernel is made for {names}, not {str(dtype).removeprefix('torch.')}"
        if head_dim > MAX_HEAD_DIM:
            return f"the Triton kernel takes heads of up to {MAX_HEAD_DIM}, not {head_dim}"
        if find_spec("triton") is None:
            return "triton is not installed; `pip install 'eagle-decoding[triton]'` brings it"
        if device.type == "cuda":
            major, minor = found = torch.cuda.get_device_capability(device)
            needed = "Triton needs a GPU of compute capability 8.0"
            return None if found >= _OLDEST else f"{needed}, not {major}.{minor}"
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
            if dtype == torch.bfloat16:
                return "Triton's interpreter takes the bits of bfloat16 for integers"
            return None
        return (
            f"Triton kernels do not run on {device.type!r}; "
            "attention `auto` or `sdpa` does (or, to debug them, TRITON_INTERPRET=1)"
        )

    def plan(
        self,
        step: Step,
        query_heads: int,
        kv_heads: int,
        dtype: torch.dtype,
        window: int | None = None,
    ) -> TreePlan | DensePlan | SdpaPlan:
        """Return a plan for the kernels, or one for a pass of many entries of each slot."""
        packed = step.segments is not None
        if step.table is None if packed else step.tail.shape[1] > MAX_NODES:
            return self.dense(step, query_heads, kv_heads, dtype, window)
        tickets, positions = self._tickets_on(step.lengths.device), step.positions
        if window is not None and not packed:
            if step.tail.shape[1] != step.tail.shape[2]:
                raise ValueError("a window needs the positions of all rows of the tail")
            positions = positions.contiguous()
        seen = replace(step, tail=step.tail.contiguous(), positions=positions)
        return TreePlan(seen, tickets, window)

    def dense(
        self,
        step: Step,
        query_heads: int,
        kv_heads: int,
        dtype: torch.dtype,
        window: int | None = None,
    ) -> DensePlan | SdpaPlan:
        """Return a plan for a pass through SDPA."""
        plan = self._sdpa.plan(step, query_heads, kv_heads, dtype, window)
        return plan if step.table is None or step.segments is not None else DensePlan(step, plan)

    def _tickets_on(self, device: torch.device) -> Tensor:
        """Return the tickets, made in the first pass: compiled code would make them every time."""
        if self._tickets is not None and self._tickets.device == device:
            return self._tickets
        if torch.compiler.is_compiling():
            return torch.empty(0, dtype=torch.int32, device=device)  # it goes without
        count = most_tiles(multiprocessors(device))
        with torch.inference_mode(False):  # what is made in that mode cannot be changed outside it
            self._tickets = torch.zeros(count, dtype=torch.int32, device=device)
        return self._tickets

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: TreePlan | DensePlan | SdpaPlan,
        scaling: float,
        scores: Scores | None = None,
    ) -> Tensor:
        """See `eagle.plugin.AttentionBackend.attend`."""
        if isinstance(plan, DensePlan):
            keys, values = gathered(keys, plan.step), gathered(values, plan.step)
            return self._sdpa.attend(query, keys, values, plan.plan, scaling, scores)
        if not isinstance(plan, TreePlan):
            return self._sdpa.attend(query, keys, values, plan, scaling, scores)
        step, scores = plan.step, scores or Scores()
        if step.segments is not None and step.table is not None:
            read: Tensor = prompt_attention(
                query,
                keys,
                values,
                step.lengths,
                step.segments.offsets,
                step.table,
                scaling,
                plan.window,
                scores.softcap,
                scores.sinks,
            )
            return read
        out: Tensor = tree_attention(
            query,
            keys,
            values,
            step.lengths,
            step.tail,
            plan.tickets,
            scaling,
            step.table,
            step.span,
            None if plan.window is None else step.positions,
            plan.window,
            scores.softcap,
            scores.sinks,
        )
        return out


@torch.library.custom_op("eagle::tree_attention", mutates_args=())
def tree_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    tail: Tensor,
    tickets: Tensor,
    scale: float,
    table: Tensor | None,
    span: int,
    positions: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Run the kernel with the tiling that suits the shapes; see `triton_kernel.launch`.

    It is no mutation of *tickets* that they are counted up and set to zero again.
    """
    # Imported when it is needed: triton takes its time, and a CPU has no use for it.
    from eagle_plugins.attention.triton_kernel import launch

    if query.stride(-1) != 1:
        query = query.contiguous()
    slots, heads, nodes, head_dim = query.shape
    kv_heads = keys.shape[1]
    tiling = choose_tiling(
        slots=slots,
        kv_heads=kv_heads,
        rows=nodes * heads // kv_heads,
        head_dim=head_dim,
        span=span if window is None else min(span, window + nodes),
        dtype=query.dtype,
        multiprocessors=multiprocessors(query.device),
        shared_memory=shared_memory(query.device),
    )
    return launch(
        query,
        keys,
        values,
        lengths,
        tail,
        tickets,
        scale,
        tiling,
        table,
        BLOCK,
        positions=positions,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )


@tree_attention.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    tail: Tensor,
    tickets: Tensor,
    scale: float,
    table: Tensor | None,
    span: int,
    positions: Tensor | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    slots, heads, nodes, head_dim = query.shape
    return query.new_empty(slots, nodes, heads, head_dim)


@torch.library.custom_op("eagle::prompt_attention", mutates_args=())
def prompt_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    table: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Run the kernel of packed prompts; see `prompt_kernel.launch`."""
    from eagle_plugins.attention.prompt_kernel import launch

    if query.stride(-1) != 1:
        query = query.contiguous()
    tiling = choose_prompt_tiling(query.shape[3], query.dtype, shared_memory(query.device))
    return launch(
        query,
        keys,
        values,
        lengths,
        offsets,
        table,
        scale,
        tiling,
        BLOCK,
        window=window,
        softcap=softcap,
        sinks=sinks,
    )


@prompt_attention.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    lengths: Tensor,
    offsets: Tensor,
    table: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    _, heads, entries, head_dim = query.shape
    return query.new_empty(1, entries, heads, head_dim)
