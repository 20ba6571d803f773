"""The attention that fits each pass: the Triton kernel where it serves, SDPA elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import BuildContext, Scores, Step, StrategyConfig
from eagle_plugins.attention.sdpa import SdpaPlan
from eagle_plugins.attention.triton import (
    DTYPES,
    MAX_HEAD_DIM,
    DensePlan,
    TreePlan,
    Triton,
    TritonConfig,
)

__all__ = ["Auto", "AutoConfig"]


class AutoConfig(StrategyConfig):
    """`auto` has no settings."""


class Auto:
    """Serves everything: trees on a GPU through `Triton`, whatever else through `Sdpa`."""

    capturable = True
    bounded = True
    modifiers = Triton.modifiers
    packs = True

    def __init__(self, config: AutoConfig, context: BuildContext) -> None:
        self._triton = Triton(TritonConfig(), context)
        device = context.device
        # Settled here, for `plan` may be compiled and cannot ask for the GPU's age there.
        self._dtypes = [
            dtype
            for dtype in DTYPES
            if device is not None
            and device.type == "cuda"
            and not self._triton.unsupported(device, dtype, MAX_HEAD_DIM)
        ]

    @property
    def paged(self) -> bool:
        """Whether it finds rows in blocks: where its kernels run."""
        return bool(self._dtypes)

    def packs_unseen(self, dtype: torch.dtype, head_dim: int) -> bool:
        """Whether the kernel serves packed passes of these: SDPA asks the host for their pieces."""
        return dtype in self._dtypes and self._triton.packs_unseen(dtype, head_dim)

    def unsupported(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Return None: what the kernel cannot serve, SDPA does."""
        return None

    def plan(
        self,
        step: Step,
        query_heads: int,
        kv_heads: int,
        dtype: torch.dtype,
        window: int | None = None,
    ) -> TreePlan | DensePlan | SdpaPlan:
        """Return a plan for the kernels where they serve, else one for SDPA."""
        plan = self._triton.plan if dtype in self._dtypes else self._triton.dense
        return plan(step, query_heads, kv_heads, dtype, window)

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
        if isinstance(plan, TreePlan) and query.shape[3] > MAX_HEAD_DIM:
            # A plan does not know the size of the heads, which may differ from layer to layer.
            step, heads, kv_heads = plan.step, query.shape[1], keys.shape[1]
            plan = self._triton.dense(step, heads, kv_heads, query.dtype, plan.window)
        return self._triton.attend(query, keys, values, plan, scaling, scores)
