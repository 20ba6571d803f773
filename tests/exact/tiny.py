"""A target and a head so small, and so precise, that all they can say can be enumerated."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.target.causal_lm import Target
from eagle.testing import tiny_head, tiny_target

# Texts of different lengths, so that no two slots of a batch stand at the same row.
PROMPTS = [[1, 2, 3], [0, 3, 1, 1, 2]]

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]


@cache
def _pair(vocab: int, device: str) -> tuple[Target, TemporaryDirectory[str]]:
    target = tiny_target(
        "llama",
        dtype=torch.float64,
        vocab_size=vocab,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    for module in list(target.model.modules()):
        for name, norm in module.named_children():
            if type(norm).__name__ == "LlamaRMSNorm":  # computes in float32, whatever it is given
                size, eps = norm.weight.shape[0], norm.variance_epsilon
                exact = torch.nn.RMSNorm(size, eps, dtype=torch.float64).requires_grad_(False)
                setattr(module, name, exact)
    head = tiny_head(target)
    for parameter in head.module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)  # so that drafts are of different likelihood
    folder = TemporaryDirectory(prefix="eagle-exact-head-")
    head.save(Path(folder.name))
    if device != "cpu":
        target = Target(target.model.to(device), None, "tiny-exact")
    return target, folder


def exact_decoder(
    vocab: int = 4, device: str = "cpu", *, eager: bool = False, **tree: object
) -> Decoder:
    """Return a decoder of a tiny float64 target and an untrained head.

    With graphs, on a GPU, the next cycle is under way when an event is delivered: who looks at the
    slots between events wants an *eager* decoder.
    """
    target, folder = _pair(vocab, device)
    head = {"name": "eagle", "weights": folder.name}
    modes = {"cuda_graph": False, "compile": False} if eager else {}
    spec = DecoderSpec(head=head, tree=tree, runtime={"max_batch": 64, **modes})
    return Decoder.from_spec(spec, target=target)
