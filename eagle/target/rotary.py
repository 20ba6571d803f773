"""Rotary tables that compiled code works out once per pass; knows modules, no model.

Sines and cosines look cheap to a compiler that fuses them into their users: on a GPU Inductor
would work them out anew for every query and key of every layer, which takes longer than reading
them. Behind an operator that it cannot look into, they are made once and read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["settle_rotary"]

_NAME = "rotary_emb"  # what transformers calls the module, in every model that has one
_HOOKED = "_eagle_settled"
_DEVICE = "cuda"


@torch.library.custom_op("eagle::settled", mutates_args=())
def settled(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return copies, which are read and not worked out again."""
    return cos.clone(), sin.clone()


@settled.register_fake
def _(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(cos), torch.empty_like(sin)


def settle_rotary(body: nn.Module) -> None:
    """Have a model's rotary tables made once per pass, where its passes are compiled for a GPU.

    Args:
        body: the model, whose modules named ``rotary_emb`` return a cosine and a sine table. Others
            are left alone.
    """
    for name, module in body.named_modules():
        if name.rpartition(".")[2] == _NAME and not hasattr(module, _HOOKED):
            module.register_forward_hook(_settle)
            setattr(module, _HOOKED, True)  # the model may get another owner


def _settle(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
    if not torch.compiler.is_compiling() or not isinstance(out, tuple) or len(out) != 2:
        return out
    cos, sin = out
    return settled(cos, sin) if cos.device.type == _DEVICE else out
