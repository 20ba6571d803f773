"""What is computed fast, each with its plain twin beside it; knows tensors and layers, no model and
no cycle.
"""

from eagle.kernels.drawing import draw, draw_by_operators, padded, rows_of
from eagle.kernels.experts import mixes, mixture, mixture_by_operators
from eagle.kernels.few_rows import MAX_ROWS, always, plan_of, product_parts
from eagle.kernels.fused_linear import Product, arrange, products
from eagle.kernels.int4 import Int4Linear, Int4Part, int4_serves, stack_int4
from eagle.kernels.int8 import Int8Linear, Int8OnGpu, int8_linear, quantize
from eagle.kernels.prepacked import (
    PackedLinear,
    Switch,
    is_dense,
    is_wrapped,
    left_alone,
    multiply,
    packs,
    reorder,
)
from eagle.kernels.racing import clocks, race, race_at
from eagle.kernels.topk import argmax, top_k

__all__ = [
    "MAX_ROWS",
    "Int4Linear",
    "Int4Part",
    "Int8Linear",
    "Int8OnGpu",
    "PackedLinear",
    "Product",
    "Switch",
    "always",
    "argmax",
    "arrange",
    "clocks",
    "draw",
    "draw_by_operators",
    "int4_serves",
    "int8_linear",
    "is_dense",
    "is_wrapped",
    "left_alone",
    "mixes",
    "mixture",
    "mixture_by_operators",
    "multiply",
    "packs",
    "padded",
    "plan_of",
    "product_parts",
    "products",
    "quantize",
    "race",
    "race_at",
    "reorder",
    "rows_of",
    "stack_int4",
    "top_k",
]
