"""The attention that fits each pass: the Triton kernel where it serves, SDPA elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from eagle.plugin import BuildContext, Scores, Step, StrategyConfig
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig
from eagle_plugins.attention.triton import DTYPES, MAX_HEAD_DIM, TreePlan, Triton, TritonConfig

__all__ = ["Auto", "AutoConfig"]


class AutoConfig(StrategyConfig):
    """`auto` has no settings."""


class Auto:
    """Serves everything: trees on a GPU through `Triton`, whatever else through `Sdpa`."""

    capturable = True
    bounded = True
    modifiers = Triton.modifiers

    def __init__(self, config: AutoConfig, context: BuildContext) -> None:
        self._triton = Triton(TritonConfig(), context)
        self._sdpa = Sdpa(SdpaConfig(), context)
        device = context.device
        # Settled here, for `plan` may be compiled and cannot ask for the GPU's age there.
        self._dtypes = [
            dtype
            for dtype in DTYPES
            if device is not None
            and device.type == "cuda"
            and not self._triton.unsupported(device, dtype, MAX_HEAD_DIM)
        ]

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
    ) -> TreePlan | Tensor:
        """Return a plan of `Triton` for what it supports, else one of `Sdpa`."""
        backend = self._triton if dtype in self._dtypes else self._sdpa
        return backend.plan(step, query_heads, kv_heads, dtype, window)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        plan: TreePlan | Tensor,
        scaling: float,
        scores: Scores | None = None,
    ) -> Tensor:
        """See `eagle.plugin.AttentionBackend.attend`."""
        if isinstance(plan, TreePlan) and query.shape[3] > MAX_HEAD_DIM:
            # A plan does not know the size of the heads, which may differ from layer to layer.
            step, heads, kv_heads = plan.step, query.shape[1], keys.shape[1]
            plan = self._sdpa.plan(step, heads, kv_heads, query.dtype, plan.window)
        return self._triton.attend(query, keys, values, plan, scaling, scores)
