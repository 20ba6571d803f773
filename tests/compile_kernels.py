"""Compiles kernels for GPUs that are not here, and prints what each needs: a JSON list.

Run in a process of its own, since kernels that are interpreted cannot be compiled.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from eagle.cache.store import BLOCK
from eagle.kernels import experts
from eagle.kernels import experts_triton as kernels
from eagle.kernels.few_rows import block_rows, tiling_of
from eagle.kernels.few_rows_triton import _few_rows
from eagle.kernels.int4_triton import _few_rows as _few_rows_int4
from eagle_plugins.attention.prompt_kernel import _read
from eagle_plugins.attention.tiling import choose_prompt_tiling, choose_tiling
from eagle_plugins.attention.triton_kernel import _attend

# Multiprocessors and shared memory, by compute capability, of an RTX 4090, an H100, a B200 and an
# RTX 5090.
GPUS = {89: (128, 99 << 10), 90: (132, 227 << 10), 100: (148, 227 << 10), 120: (170, 99 << 10)}
ATTENTION = [(89, 4, 128), (89, 4, 256), (90, 1, 128), (90, 4, 128), (90, 8, 64, True)]
PROMPTS = [(89, 4, 128), (90, 4, 128, True), (90, 8, 256)]
PRODUCTS = [
    (90, 26, 4096, 1, "bf16"), (90, 26, 22016, 1, "bf16"), (90, 64, 12288, 1, "bf16"),
    (120, 64, 12288, 1, "bf16"), (120, 26, 4096, 2, "bf16"), (90, 4, 49152, 1, "i8"),
    (90, 64, 49152, 1, "i8"), (100, 4, 49152, 1, "i8"), (120, 64, 49152, 1, "i8"),
]  # fmt: skip
INT4 = [(90, 1, 128, 3), (90, 26, 64, 3), (90, 64, 64, 2), (120, 26, 64, 3)]
EXPERTS = [(90, 1, "bf16"), (90, 26, "fp32"), (90, 64, "bf16"), (120, 64, "fp16")]
TYPES = {"*bf16": ("query", "key", "value", "out"), "*fp32": ("part", "lse"), "*i64": ("length",)}


def attention(capability, groups, head_dim, modified=False):
    """Return the shared memory of the kernel for 26 nodes and 8 KV heads.

    With or without a window, a cap and sinks, all at once.
    """
    multiprocessors, room = GPUS[capability]
    tiling = choose_tiling(
        slots=1,
        kv_heads=8,
        rows=26 * groups,
        head_dim=head_dim,
        span=4096,
        dtype=torch.bfloat16,
        multiprocessors=multiprocessors,
        shared_memory=room,
    )
    types = {f"{name}_ptr": kind for kind, names in TYPES.items() for name in names}
    types |= {"tail_ptr": "*u8", "ticket_ptr": "*i32", "table_ptr": "*i32"}
    types |= {"scale": "fp32", "softcap": "fp32"}
    types |= {"position_ptr": "*i64", "sink_ptr": "*bf16"} if modified else {}
    constants = {} if modified else {"position_ptr": None, "sink_ptr": None}
    constants |= {
        "GROUPS": groups,
        "HEAD_DIM": head_dim,
        "SPLIT": True,
        "JOIN": True,
        "WINDOWED": modified,
        "CAPPED": modified,
        "SINKS": modified,
        "PAGE": BLOCK,
        "PRECISION": "ieee",
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "BLOCK_D": triton.next_power_of_2(head_dim),
    }
    aligned = ("_ptr", "qb", "qh", "qn", "kb", "kh", "kn", "vb", "vh", "vn")
    return compiled(
        _attend, types, constants, aligned, capability, tiling.num_warps, tiling.num_stages
    )


def prompts(capability, groups, head_dim, modified=False):
    """Return the shared memory of the kernel of packed prompts, of up to eight."""
    tiling = choose_prompt_tiling(head_dim, torch.bfloat16, GPUS[capability][1])
    types = {f"{name}_ptr": kind for kind, names in TYPES.items() for name in names}
    types |= {"offset_ptr": "*i32", "table_ptr": "*i32", "scale": "fp32", "softcap": "fp32"}
    types |= {"sink_ptr": "*bf16"} if modified else {}
    constants = {} if modified else {"sink_ptr": None}
    constants |= {
        "GROUPS": groups,
        "HEAD_DIM": head_dim,
        "PAGE": BLOCK,
        "WINDOWED": modified,
        "CAPPED": modified,
        "SINKS": modified,
        "PRECISION": "ieee",
        "BLOCK_M": tiling.block_m,
        "BLOCK_N": tiling.block_n,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "BLOCK_S": 8,
    }
    aligned = ("_ptr", "qh", "qn", "kh", "kn", "vh", "vn")
    return compiled(
        _read, types, constants, aligned, capability, tiling.num_warps, tiling.num_stages
    )


def product(capability, rows, columns, splits, dtype):
    """Return the shared memory of the kernel for some rows."""
    multiprocessors, room = GPUS[capability]
    scaled = dtype == "i8"
    tiling = tiling_of(rows, columns, 4096, splits, 1 if scaled else 2, multiprocessors, room)
    types = {
        "x": f"tensordesc<{dtype}[{tiling.block_m},{tiling.block_k}]>",
        "weight": f"tensordesc<{dtype}[{tiling.block_n},{tiling.block_k}]>",
        "out_ptr": "*bf16" if splits == 1 else "*fp32",
    }
    constants = {"SCALED": scaled, "SPLITS": splits, "BLOCK_M": tiling.block_m}
    constants |= {"BLOCK_N": tiling.block_n, "BLOCK_K": tiling.block_k}
    for name in ("scales_ptr", "row_scales_ptr"):
        (types if scaled else constants)[name] = "*fp32" if scaled else None
    aligned = ("_ptr", "columns", "depth")
    return compiled(_few_rows, types, constants, aligned, capability, 4, tiling.stages)


def mixture(capability, rows, dtype):
    """Return the most shared memory of the kernels for experts of Mixtral 8x7B's sizes."""
    multiprocessors, room = GPUS[capability]
    top, itemsize, block_m = 2, 4 if dtype == "fp32" else 2, block_rows(rows)
    tiling = experts.tiling_of(4096, 14336, top, multiprocessors)
    two, one, warps = experts._AT_ONCE[itemsize]
    pointers = {"found_ptr": "*i64", "ids_ptr": "*i64"}
    found, of_rows = {"BLOCK_E": 8, "BLOCK_P": 64}, {"TOP": top, "BLOCK_T": top}
    of_rows["SPLITS"] = tiling.splits

    def product(kernel, first, block_n, block_k, weights, out, constants):
        types = pointers | {
            first: f"tensordesc<{dtype}[{block_m},{block_k}]>",
            "weight": f"tensordesc<{dtype}[{block_n},{block_k}]>",
        }
        constants = constants | {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k}
        stages = experts.stages_of(weights * block_n, block_m, block_k * itemsize, room)
        aligned = ("_ptr", "inner", "columns", "depth")
        return compiled(kernel, types | out, constants, aligned, capability, warps, stages)

    return max(
        product(kernels._activate, "x", tiling.gated, two, 2, {"hidden_ptr": f"*{dtype}"}, {}),
        product(kernels._down, "hidden", tiling.down, one, 1, {"parts_ptr": "*fp32"}, of_rows),
        compiled(kernels._find, pointers, found, ("_ptr",), capability, 4, 3),
        compiled(
            kernels._add,
            pointers | {"parts_ptr": "*fp32", "weights_ptr": "*fp32", "out_ptr": f"*{dtype}"},
            of_rows | {"BLOCK_N": kernels._COLUMNS},
            ("_ptr", "columns"),
            capability,
            4,
            3,
        ),
    )


def product_int4(capability, rows, block_n, stages):
    """Return the shared memory of the kernel of four bits for a number of rows."""
    block_m, width = block_rows(rows), 64
    types = {
        "x": f"tensordesc<bf16[{block_m},{width}]>",
        "weight": f"tensordesc<i16[{block_n},{width}]>",
        "pairs_ptr": "*i32",
        "out_ptr": "*fp32",
    }
    constants = {"GROUP": 128, "NATIVE": True, "SPLITS": 2, "WIDTH": width}
    constants |= {"BLOCK_M": block_m, "BLOCK_N": block_n}
    aligned = ("_ptr", "columns", "depth")
    return compiled(_few_rows_int4, types, constants, aligned, capability, 4, stages)


def compiled(kernel, types, constants, aligned, capability, num_warps, num_stages):
    """Compile a kernel whose other arguments are int32, and return its shared memory."""
    names = kernel.arg_names
    signature = {
        name: "constexpr" if name in constants else types.get(name, "i32") for name in names
    }
    attributes = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name.endswith(aligned) and name not in constants
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=options
    ).metadata.shared


if __name__ == "__main__":
    found = [("attention", *case, attention(*case), GPUS[case[0]][1]) for case in ATTENTION]
    found += [("prompts", *case, prompts(*case), GPUS[case[0]][1]) for case in PROMPTS]
    found += [("product", *case, product(*case), GPUS[case[0]][1]) for case in PRODUCTS]
    found += [("int4", *case, product_int4(*case), GPUS[case[0]][1]) for case in INT4]
    found += [("mixture", *case, mixture(*case), GPUS[case[0]][1]) for case in EXPERTS]
    print(json.dumps(found))
