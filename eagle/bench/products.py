"""What the products of one layer cost, beside the time to read their weights.

Knows sizes and linear layers: no model is loaded, and weights are random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eagle.bench.floors import read_bandwidth
from eagle.bench.mixtures import mixture_of
from eagle.bench.quartiles import Quartiles
from eagle.errors import RequestError
from eagle.kernels import (
    Int8OnGpu,
    int8_linear,
    multiply,
    packs,
    plan_of,
    product_parts,
    quantize,
    reorder,
)
from eagle.runtime import Graphs, Job

__all__ = ["Product", "ProductTime", "ProductTimes", "product_times", "products_of"]

_WEIGHTS = 192 << 20  # bytes of weights taken in turn, so that none waits in a cache
_CALLS = 96  # at most, timed together


@dataclass(frozen=True)
class Product:
    """One product of a pass.

    Attributes:
        name: of the projections that it makes.
        columns: N, what they give together.
        depth: K, what they read.
        shared: whether several layers take their part of it.
        drafts: whether it is for drafts, which may read a weight of eight bits instead.
    """

    name: str
    columns: int
    depth: int
    shared: bool = False
    drafts: bool = False


@dataclass(frozen=True)
class ProductTime:
    """One product of some rows.

    Attributes:
        product: which.
        rows: M, of its input.
        plain: microseconds by PyTorch alone, which asks cuBLAS or oneDNN.
        ours: microseconds as passes of this library make it. On a GPU the quantizing of rows and
            the adding up of parts, which are left to what surrounds them in a pass, are left out.
        ratio: of the two, round by round: above 1 where ours is quicker.
        floor: microseconds that reading the weight, as passes read it, takes at the measured
            bandwidth.
        int8: whether they read a copy of eight bits.
    """

    product: Product
    rows: int
    plain: Quartiles
    ours: Quartiles
    ratio: Quartiles
    floor: float
    int8: bool


@dataclass(frozen=True)
class ProductTimes:
    """What `product_times` measured.

    Attributes:
        times: product by product, in the order of the rows asked for.
        bandwidth: read bandwidth of the device, bytes per second.
    """

    times: tuple[ProductTime, ...]
    bandwidth: float


def products_of(config: Any) -> list[Product]:
    """Return the products of a decoder layer and the LM head, as this library stacks them.

    Args:
        config: of a transformers model with the projections of Llama; of one with experts, which
            are no such products, only its attention and LM head are returned.

    Raises:
        RequestError: it is of another kind.
    """
    needed = ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    if missing := [key for key in needed if getattr(config, key, None) is None]:
        raise RequestError(
            f"the products of a {config.model_type!r} model are not known here: its configuration "
            f"has no {' and no '.join(missing)}, as Llama's has"
        )
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    found = [
        Product("q, k, v", (heads + 2 * kv_heads) * size, hidden, shared=True),
        Product("o", hidden, heads * size),
    ]
    if mixture_of(config) is None:
        found += [
            Product("gate, up", 2 * config.intermediate_size, hidden, shared=True),
            Product("down", hidden, config.intermediate_size),
        ]
    vocabulary = config.vocab_size
    return [
        *found,
        Product("LM head", vocabulary, hidden),
        Product("LM head for drafts", vocabulary, hidden, drafts=True),
    ]


@torch.inference_mode()
def product_times(
    products: Sequence[Product],
    rows: Sequence[int],
    *,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int = 20,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> ProductTimes:
    """Time products by PyTorch alone and as this library makes them, in turns.

    On CUDA, calls are captured and replayed as a graph, as decoders do.

    Args:
        products: which.
        rows: of their input, at least 1 each.
        dtype: of inputs and weights.
        device: where.
        repeats: rounds.
        progress: called with what is done, how much of it, and its total.
    """
    bandwidth = read_bandwidth(device)
    times = []
    for product in products:
        generator = torch.Generator(device).manual_seed(0)

        def normal(*size: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(size, generator=generator, device=device).to(dtype)

        nbytes = product.columns * product.depth * dtype.itemsize
        sets = min(-(-_WEIGHTS // nbytes), _CALLS)
        weights = [normal(product.columns, product.depth) for _ in range(sets)]
        for count in rows:
            x = normal(count, product.depth)
            work, int8 = _ours(x, weights, product)
            works = (partial(F.linear, x), work)
            graphs = Graphs(device) if device.type == "cuda" else None
            jobs = [Job(partial(_all, each, weights), graphs, device, 1) for each in works]
            for _ in range(repeats):
                for job in jobs:
                    job.time()
            plain, ours = ([1e3 * ms / sets for ms in job.times] for job in jobs)
            ratio = Quartiles.of(one / other for one, other in zip(plain, ours, strict=True))
            floor = 1e6 * (weights[0].numel() if int8 else nbytes) / bandwidth
            found = (Quartiles.of(plain), Quartiles.of(ours), ratio)
            times.append(ProductTime(product, count, *found, floor, int8))
            progress("timing", len(times), len(products) * len(rows))
    return ProductTimes(tuple(times), bandwidth)


def _ours(
    x: Tensor, weights: list[Tensor], product: Product
) -> tuple[Callable[[Tensor], Tensor], bool]:
    """Return how a pass multiplies by one of these weights, and whether by one of eight bits."""
    if product.drafts:
        found = {id(weight): int8_linear(_layer(weight)) for weight in weights}
        rough = {key: each for key, each in found.items() if each and each.serves(x)}
        bytewise = {key: each for key, each in rough.items() if isinstance(each, Int8OnGpu)}
        if len(bytewise) == len(found):
            values, scales = quantize(x)
            return lambda weight: bytewise[id(weight)].of_bytes(values, scales, x.dtype), True
        if len(rough) == len(found):
            return lambda weight: rough[id(weight)](x), True
    if x.device.type == "cpu":
        if not packs(_layer(weights[0])):
            return partial(F.linear, x), False
        packed = {id(weight): reorder(weight) for weight in weights}
        return lambda weight: multiply(x, packed[id(weight)], None), False
    splits = plan_of(weights[0], shared=product.shared).parts(len(x))
    if not splits:
        return partial(F.linear, x), False
    return lambda weight: product_parts(x, weight, splits), False


def _layer(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _all(work: Callable[[Tensor], Tensor], weights: list[Tensor]) -> None:
    for weight in weights:
        work(weight)
