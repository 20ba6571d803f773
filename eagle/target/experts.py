"""Experts of a target in passes of few rows, by kernels that read each chosen one once.

transformers lets an implementation of experts be registered by name, and models say in their
configuration which they use. Of many rows, and where experts are not as the kernels take them, its
own is used. Knows transformers' interface; knows no family by name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations import moe

from eagle.errors import reason
from eagle.kernels import MAX_ROWS, always, mixes, mixture, mixture_by_operators

__all__ = ["EXPERTS", "Experts", "differ", "grouped", "plain"]

log = logging.getLogger("eagle.target")

EXPERTS = "eagle"
_OWN = "grouped_mm"  # transformers' default; what else a user chose is left alone
_ROWS = (1, 26, MAX_ROWS)  # of the products that are held together before the first pass
# Relative distance of the two: what they round otherwise. A wrong row or expert is off by about 1.
_CLOSE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def _experts(module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Any:
    """Return what experts make of some rows: the implementation that is registered."""
    rows = hidden_states.shape[0]
    few = always(rows <= MAX_ROWS) and always(rows > 0)
    ours = hidden_states.dtype == module.down_proj.dtype and not hidden_states.requires_grad
    if not ours or always(rows > MAX_ROWS) or always(rows == 0):
        return _own()(module, hidden_states, top_k_index, top_k_weights)
    args = (hidden_states, top_k_index, top_k_weights, module.gate_up_proj, module.down_proj)
    return mixture(*args) if few else mixture_by_rows(*args)


@torch.library.custom_op("eagle::mixture_by_rows", mutates_args=())
def mixture_by_rows(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Return what `eagle.kernels.mixture` does, where compiled code serves any number of rows.

    Who makes it is chosen when it runs: of more than `MAX_ROWS`, transformers.

    Args:
        x: ``[M, H]``.
        ids: ``[M, T]``.
        weights: ``[M, T]``.
        gate_up: ``[E, 2 I, H]``.
        down: ``[E, H, I]``.
    """
    if 0 < len(x) <= MAX_ROWS:
        made: Tensor = mixture(x, ids, weights, gate_up, down)
        return made
    return grouped(x, ids, weights, gate_up, down)


@mixture_by_rows.register_fake
def _(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def grouped(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return what transformers makes by default of `mixture_by_rows`' arguments."""
    out: Tensor = _own()(_Plain(gate_up, down), x, ids, weights)
    return out


class _Plain:
    """What transformers' implementations ask a module of experts for, of plain gated ones."""

    has_gate = True
    has_bias = has_post_expert_norm = is_transposed = False
    _is_expert_parallel = False

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        self.gate_up_proj, self.down_proj = gate_up, down
        self.num_experts = len(down)

    def _apply_gate(self, out: Tensor) -> Tensor:
        gate, up = out.chunk(2, dim=-1)
        return F.silu(gate) * up


def _own() -> Any:
    return moe.ALL_EXPERTS_FUNCTIONS[_OWN]


moe.ExpertsInterface.register(EXPERTS, _experts)


class Experts:
    """Which of two implementations the experts of a model go through; of others, none.

    Args:
        model: frozen, on its device.

    Attributes:
        served: whether there are experts that have both.
    """

    def __init__(self, model: nn.Module) -> None:
        found = list(_mixtures(model))
        self._configs: tuple[Any, ...] = ()
        if found and all(plain(each) for each in found) and not _differing(found):
            self._configs = tuple({id(each.config): each.config for each in found}.values())
            return
        # What made a target of this model before, elsewhere or of other weights, may have left it.
        for each in found:
            if getattr(each.config, "_experts_implementation", None) == EXPERTS:
                each.config._experts_implementation = _OWN

    @property
    def served(self) -> bool:
        """Whether the experts have an implementation here."""
        return bool(self._configs)

    def use(self, ours: bool) -> None:
        """Let passes from now on go through the kernels, or through transformers' own."""
        name = EXPERTS if ours else _OWN
        for config in self._configs:
            if config._experts_implementation != name:
                config._experts_implementation = name


def _mixtures(model: nn.Module) -> Iterator[Any]:
    """Yield the modules that ask their configuration who computes their experts."""
    for module in model.modules():
        if hasattr(type(module), "_apply_gate") and hasattr(module, "is_transposed"):
            yield module


def plain(module: Any) -> bool:
    """Whether a module holds gated experts that the kernels serve, and does nothing besides.

    Not where weights are quantized, transposed, interleaved, cut or parametrized, with biases or a
    norm behind each expert, with a gate of their own or another activation than SiLU, where its
    forward is hooked or replaced, or where somebody chose another implementation than
    transformers' default.
    """
    gate_up, down = (module._parameters.get(name) for name in ("gate_up_proj", "down_proj"))
    others = ("has_bias", "has_post_expert_norm", "is_transposed", "_is_expert_parallel")
    config = getattr(module, "config", None)
    return (
        not any(each is None or each.requires_grad for each in (gate_up, down))
        and len(module._parameters) == len((gate_up, down))
        and type(module)._apply_gate is moe._default_apply_gate
        and getattr(module, "has_gate", False)
        and getattr(module, "is_concatenated", False)
        and not any(getattr(module, name, False) for name in others)
        and _is_silu(getattr(module, "act_fn", None))
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
        and getattr(config, "_experts_implementation", None) in (_OWN, EXPERTS)
        and mixes(gate_up, down, 1)
    )


def _is_silu(activation: Any) -> bool:
    from transformers.activations import SiLUActivation

    return activation is F.silu or type(activation) in (nn.SiLU, SiLUActivation)


def _differing(modules: list[Any]) -> bool:
    """Hold the kernels against operators on one module of each shape; say so if they differ."""
    shapes = {(tuple(each.down_proj.shape), each.down_proj.dtype): each for each in modules}
    for each in shapes.values():
        if why := differ(each.gate_up_proj, each.down_proj):
            log.warning("experts are left to transformers, for the kernels here: %.300s", why)
            return True
    return False


@torch.inference_mode()
def differ(gate_up: Tensor, down: Tensor) -> str | None:
    """Return in what the kernels differ from PyTorch's operators on these experts, or None.

    Tests hold them together in Triton's interpreter; a user's GPU, driver or compiler may be
    another.
    """
    experts, hidden, _ = down.shape
    top = min(2, experts)
    generator = torch.Generator(down.device).manual_seed(0)
    for rows in _ROWS:
        options: dict[str, Any] = {"generator": generator, "device": down.device}
        x = torch.randn(rows, hidden, **options).to(down.dtype)
        scores, ids = torch.rand(rows, experts, **options).topk(top)
        try:
            found = mixture(x, ids, scores, gate_up, down).float()
        except Exception as error:  # also of a compiler that is not there
            return reason(error)
        expected = mixture_by_operators(x, ids, scores, gate_up, down).float()
        size = expected.norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
        apart = (found - expected).norm(dim=1) / size
        if not bool((apart <= _CLOSE[down.dtype]).all()):
            return f"{rows} rows are off by up to {float(apart.max()):.2g}"
    return None
