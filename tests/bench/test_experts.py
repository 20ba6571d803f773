"""Timing the experts of a mixture by themselves."""

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig, Qwen3MoeConfig

from eagle.bench import experts as module
from eagle.bench.experts import expert_times
from eagle.bench.mixtures import Mixture, mixture_of
from eagle.bench.report import experts_table
from eagle.kernels import mixture, mixture_by_operators
from eagle.target.experts import grouped

TINY = Mixture(8, 2, 32, 16)


def test_the_experts_of_a_layer_are_known_by_its_configuration():
    assert mixture_of(MixtralConfig()) == Mixture(8, 2, 4096, 14336)
    wide = Qwen3MoeConfig(num_experts=16, hidden_size=64, moe_intermediate_size=24)
    assert mixture_of(wide) == Mixture(16, wide.num_experts_per_tok, 64, 24)
    assert mixture_of(LlamaConfig()) is None


def test_rows_read_as_many_experts_as_independent_routing_gives():
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 4, 26):
        scores = torch.rand(4000, rows, 8, generator=generator)
        chosen = torch.zeros(4000, 8).scatter_(1, scores.topk(2).indices.flatten(1), 1.0)
        assert chosen.sum(1).mean().item() == pytest.approx(TINY.expected(rows), abs=0.05)
    assert TINY.expected(1) == 2


@pytest.mark.parametrize("kernels", [False, True])
def test_bytes_are_those_of_the_experts_that_were_chosen(kernels, monkeypatch):
    monkeypatch.setattr(module, "_WEIGHTS", 3 * 2 * 3 * 32 * 16 * 4)
    monkeypatch.setattr(module, "read_bandwidth", lambda device: 1e9)
    monkeypatch.setattr(module, "mixes", lambda *args: kernels)
    asked, told = {"ours": [], "theirs": []}, []

    def noting(who):
        def work(x, ids, weights, gate_up, down):
            asked[who].append((len(x), len(ids.unique()), gate_up.data_ptr()))
            assert gate_up.shape == (8, 32, 32)
            assert down.shape == (8, 32, 16)
            return x

        return work

    monkeypatch.setattr(module, "mixture", noting("ours"))
    monkeypatch.setattr(module.experts, "grouped", noting("theirs"))
    found = expert_times(
        TINY,
        [1, 26, 65],
        dtype=torch.float32,
        device=torch.device("cpu"),
        repeats=2,
        progress=lambda *what: told.append(what),
    )
    assert [each.rows for each in found.times] == [1, 26, 65]
    assert {rows for rows, *_ in asked["ours"]} == ({1, 26} if kernels else set())
    assert len({place for *_, place in asked["theirs"]}) == 3, "weights are taken in turn"
    for each in found.times:
        read = [count for rows, count, _ in asked["theirs"] if rows == each.rows]
        assert each.read == pytest.approx(sum(read) / len(read))
        assert each.size == pytest.approx(each.read * 3 * 32 * 16 * 4)
        assert each.share == pytest.approx(each.size / each.ours.median * 1e6 / 1e9)
        assert each.kernels == (kernels and each.rows < 65)
    assert found.times[0].read == 2
    assert told[-1] == ("timing experts", 3, 3)
    table = experts_table(found)
    assert [len(row) for row in table] == [len(table[0])] * 4
    assert table[1][:4] == [
        "2 of 8 experts, 32 x 16" + ("" if kernels else ", by transformers"), "1", "2.00", "2.00"
    ]  # fmt: skip


def test_what_is_timed_is_one_function():
    x, down = torch.randn(5, 32), torch.randn(8, 32, 16)
    weights, ids = torch.rand(5, 8).topk(2)
    args = x, ids, weights, torch.randn(8, 32, 32), down
    expected = mixture_by_operators(*args)
    torch.testing.assert_close(grouped(*args), expected, rtol=1e-4, atol=1e-3)
    assert module.mixture is mixture
