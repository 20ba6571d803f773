"""Timing the products of a pass by themselves."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, LlamaConfig, MixtralConfig

from eagle.bench import products as module
from eagle.bench.products import Product, product_times, products_of
from eagle.bench.report import products_table
from eagle.errors import RequestError
from eagle.kernels.int8 import int8_linear
from eagle.kernels.prepacked import packs
from tests.interpreted import DEVICE

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
}


def test_the_products_of_a_layer_are_stacked_as_passes_stack_them():
    assert products_of(LlamaConfig(**SMALL)) == [
        Product("q, k, v", 12 * 16, 64, shared=True),
        Product("o", 64, 128),
        Product("gate, up", 192, 64, shared=True),
        Product("down", 64, 96),
        Product("LM head", 300, 64),
        Product("LM head for drafts", 300, 64, drafts=True),
    ]


def test_experts_are_left_out():
    names = [product.name for product in products_of(MixtralConfig(**SMALL))]
    assert names == ["q, k, v", "o", "LM head", "LM head for drafts"]


def test_another_kind_of_model_is_refused():
    with pytest.raises(RequestError, match=r"'gpt2' model .* no intermediate_size"):
        products_of(GPT2Config())


def test_every_product_is_timed_for_every_number_of_rows(monkeypatch):
    monkeypatch.setattr(module, "_WEIGHTS", 3 * 64 * 128 * 4)
    monkeypatch.setattr(module, "read_bandwidth", lambda device: 1e9)
    asked, told = [], []

    def ours(x, weights, product):
        asked.append((len(x), len(weights), product.name))
        return lambda weight: F.linear(x, weight), product.drafts

    monkeypatch.setattr(module, "_ours", ours)
    found = product_times(
        [Product("o", 64, 128), Product("all", 128, 128, drafts=True)],
        [1, 5],
        dtype=torch.float32,
        device=torch.device("cpu"),
        repeats=3,
        progress=lambda *what: told.append(what),
    )
    assert asked == [(1, 3, "o"), (5, 3, "o"), (1, 2, "all"), (5, 2, "all")]
    assert [(each.product.name, each.rows) for each in found.times] == [
        (name, rows) for rows, _, name in asked
    ]
    assert [each.int8 for each in found.times] == [False] * 2 + [True] * 2
    assert [each.floor for each in found.times] == pytest.approx([32.768] * 2 + [65.536 / 4] * 2)
    assert [row[0] for row in products_table(found)[2:4]] == ["o, 64 x 128", "all, 128 x 128, int8"]
    assert told[-1] == ("timing", 4, 4)
    assert all(each.plain.low > 0 and each.ratio.low > 0 for each in found.times)


@pytest.mark.parametrize("rows", [1, 26, 65])
@pytest.mark.parametrize(("columns", "depth"), [(128, 256), (4096, 2048)])
def test_what_is_timed_is_the_product(rows, columns, depth):
    weight = torch.randn(columns, depth).to(DEVICE, torch.bfloat16)
    x = torch.randn(rows, depth).to(DEVICE, torch.bfloat16)
    work, int8 = module._ours(x, [weight], Product("any", columns, depth))
    found = work(weight)
    assert not int8
    if found.dim() == 3:
        found = found.double().sum(0)
    expected = x.double() @ weight.double().T
    assert (found.double() - expected).norm() / expected.norm() < 1e-2


def test_a_cpu_is_timed_as_its_passes_multiply():
    layer = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    work, _ = module._ours(x, [layer.weight], Product("o", 64, 64))
    assert hasattr(work, "func") != packs(layer), "dense where passes are, else packed"


@pytest.mark.parametrize("rows", [1, 65])
def test_drafts_read_a_byte_for_a_number_where_they_are_faster(rows):
    weights = [torch.randn(2**14, 2**9).to(DEVICE, torch.bfloat16) for _ in range(2)]
    x = torch.randn(rows, 2**9).to(DEVICE, torch.bfloat16)
    work, int8 = module._ours(x, weights, Product("LM head", 2**14, 2**9, drafts=True))
    rough = int8_linear(module._layer(weights[0]))
    assert int8 == (rough is not None and rough.serves(x))
    if not int8:
        assert torch.equal(work(weights[0]).view(rows, -1), F.linear(x, weights[0]))
        return
    for weight in weights:
        assert torch.equal(work(weight), int8_linear(module._layer(weight))(x))
