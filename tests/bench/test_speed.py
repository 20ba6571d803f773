"""Measuring speed: everybody takes turns on the same prompts, and what is timed is what runs."""

from __future__ import annotations

import pytest
import torch

from eagle import Decoder, SamplingParams
from eagle.bench.floors import peak_memory, read_bandwidth, weight_bytes
from eagle.bench.speed import check_baselines, measure_speed
from eagle.bench.stock import stock_texts
from eagle.bench.subjects import prepare
from eagle.bench.sweep import sweep_passes
from eagle.bench.timing import PhaseClock, phase_times
from eagle.cycle.cycle import PHASES
from eagle.errors import RequestError
from eagle.spec import DecoderSpec
from eagle.testing import tiny_target
from eagle_plugins.attention.auto import Auto
from tests.caches import noted_pieces

PROMPTS = [[5, 6, 7], [10, 12, 14, 16, 18], [40, 41]]
PARAMS = SamplingParams(max_new_tokens=24, ignore_eos=True)
ALL = ("plain", "hf", "hf-assisted-ngram")


@pytest.fixture(autouse=True)
def small_buffer(monkeypatch):
    """Read a few MB for the bandwidth instead of a GB."""
    monkeypatch.setattr("eagle.bench.floors._BUFFER", {"cpu": 4 << 20, "cuda": 64 << 20})


@pytest.fixture(scope="module")
def decoders(spec, pair):
    chain = {"name": "chain", "depth": 2}
    return {
        "tree": Decoder.from_spec(spec(), target=pair[0]),
        "chain": Decoder.from_spec(spec(tree=chain), target=pair[0]),
    }


def test_everybody_answers_every_prompt_alike_in_float32(decoders):
    seen = []
    found = measure_speed(
        decoders,
        PROMPTS,
        PARAMS,
        baselines=ALL,
        repeats=2,
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert [row.name for row in found.rows] == ["tree", "chain", *ALL]
    for row in found.rows:
        assert [trial.prompts for trial in row.trials] == [(0,), (1,), (2,)] * 2
        assert found.row("plain").same(row) == found.answers == 6
        assert all(trial.tokens == 24 and trial.seconds > 0 for trial in row.trials)
        assert row.memory > 0
    tree, chain, plain, hf, _ = found.rows
    assert tree.tau > chain.tau > plain.tau == 1
    assert (tree.nodes, chain.nodes, plain.nodes, hf.nodes) == (16, 3, 1, None)
    assert all(row.lossless for row in found.rows)
    timed = [what for what, _, _ in seen if what.startswith("timing") and "phases" not in what]
    assert timed == [f"timing {row.name}" for row in found.rows] * 6, "they take turns"


def test_a_cycles_time_is_split_into_its_phases(decoders):
    found = measure_speed(decoders, PROMPTS[:1], PARAMS)
    for row in found.rows:
        assert list(row.phases) == list(PHASES)
        assert all(value >= 0 for value in row.phases.values())
        assert row.phases["verify"] > 0
        assert 0.02 * row.cycle < sum(row.phases.values()) < 50 * row.cycle
        assert row.floor == pytest.approx(
            1e3 * weight_bytes(decoders["tree"].target) / found.bandwidth
        )
    assert found.row("tree").phases["draft"] > found.row("plain").phases["draft"]


def test_a_batch_is_answered_at_once(decoders):
    prompts = [*PROMPTS, [50, 52], [9]]
    found = measure_speed(decoders, prompts, PARAMS, baselines=("plain", "hf"), batch=2)
    for row in found.rows:
        assert [trial.prompts for trial in row.trials] == [(0, 1), (2, 3)], "one is left over"
        assert [len(trial.answers) for trial in row.trials] == [2, 2]
        assert found.row("plain").same(row) == 4
    assert found.prompts == 4
    plain = found.row("plain")
    assert [trial.cycles for trial in plain.trials] == [23, 23]
    assert [trial.verifications for trial in plain.trials] == [46, 46]
    assert plain.tau == 1
    assert plain.phases["verify"] > 0


@pytest.mark.parametrize("slots", [2, 8])
def test_no_part_of_a_cycle_takes_less_than_nothing(spec, pair, slots, monkeypatch):
    """Also where prompts are read while others are decoded, for want of slots or in pieces."""
    monkeypatch.setattr("eagle.runtime.runtime._TOGETHER", {"cpu": 20})
    decoder = Decoder.from_spec(spec(runtime={"max_batch": slots}), target=pair[0])
    prompts = [[5 + place % 50 for place in range(9 + number)] for number in range(8)]
    found = measure_speed({"tree": decoder}, prompts, PARAMS, batch=8)
    for row in found.rows:
        (trial,) = row.trials
        assert 0 < trial.reading < trial.seconds
        assert row.cycle > 0
        assert all(part >= 0 for part in row.parts.values())
        assert trial.cycles * slots >= trial.verifications
    plain = found.row("plain")
    assert plain.trials[0].cycles >= 23 * 8 // slots


def test_a_prompt_that_was_answered_before_is_read_all_the_same(spec, pair, monkeypatch):
    monkeypatch.setattr(Auto, "paged", True)
    decoder = Decoder.from_spec(spec(), target=pair[0])
    read = noted_pieces(decoder, monkeypatch)
    measure_speed({"tree": decoder}, [[5 + place % 50 for place in range(200)]], PARAMS, repeats=2)
    timed = [piece for piece in read if piece.start == 0]
    assert len(timed) >= 3


def test_fewer_prompts_than_a_batch_are_one_group(decoders):
    (row,) = measure_speed(decoders, PROMPTS, PARAMS, baselines=(), batch=8).rows[:1]
    assert [trial.prompts for trial in row.trials] == [(0, 1, 2)]


def test_an_answer_cut_short_by_one_decoders_capacity_is_cut_for_all(decoders, spec, pair):
    short = Decoder.from_spec(spec(runtime={"max_length": 12}), target=pair[0])
    found = measure_speed({"short": short}, PROMPTS[:1], PARAMS, baselines=ALL)
    assert {row.trials[0].tokens for row in found.rows} == {9}


def test_an_answer_without_a_cycle_has_no_phases(decoders):
    found = measure_speed(decoders, PROMPTS[:1], PARAMS.model_copy(update={"max_new_tokens": 1}))
    assert [dict(row.phases) for row in found.rows] == [{}, {}, {}]
    assert [row.cycle for row in found.rows] == [None, None, None]


def test_timing_leaves_a_decoder_as_it_was(decoders):
    decoder = decoders["tree"]
    before = decoder.generate(PROMPTS, PARAMS)
    assert phase_times(decoder, PROMPTS[:1], PARAMS)["verify"] > 0
    sweep_passes(decoder, [1, 3], context=8, repeats=1)
    assert decoder._cycle.timer is None
    assert [r.tokens for r in decoder.generate(PROMPTS, PARAMS)] == [r.tokens for r in before]


def test_a_clock_gives_the_latest_cycle(monkeypatch):
    times = iter([0.0, 1.0, 2.0, 3.0, 4.0, 10.0, 10.001, 10.003, 10.007, 10.015])
    monkeypatch.setattr("eagle.bench.timing.time.perf_counter", lambda: next(times))
    clock = PhaseClock(torch.device("cpu"))
    for phase in ("draft", "verify", "accept", "commit", "end") * 2:
        clock(phase)
    taken = clock.take(replayed=False)
    assert {k: round(v) for k, v in taken.items()} == {
        "draft": 1, "verify": 2, "accept": 4, "commit": 8,
    }  # fmt: skip
    assert clock.take(replayed=False) == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_cycle_is_timed_as_it_is_replayed(spec, pair, tmp_path):
    pair[0].model.save_pretrained(tmp_path)
    target = {"model": str(tmp_path), "device": "cuda", "dtype": "float32"}
    runtime = {"compile": False, "cuda_graph": True}
    decoder = Decoder.from_spec(spec(target=target, runtime=runtime))
    found = phase_times(decoder, PROMPTS[:1], PARAMS)
    assert decoder._runtime.graph
    assert all(0 < found[phase] < 100 for phase in PHASES)
    assert sweep_passes(decoder, [1, 8], context=8, repeats=2).graph


@pytest.mark.parametrize("paged", [False, True])
def test_verifications_of_several_texts_at_once_are_timed(spec, pair, paged, monkeypatch):
    monkeypatch.setattr(Auto, "paged", paged)
    decoder = Decoder.from_spec(spec(), target=pair[0])
    found = sweep_passes(decoder, [1, 8], context=40, batch=3, repeats=2)
    assert found.batch == 3
    row = 2 * pair[0].kv_heads * pair[0].head_dim * pair[0].info.layers * 4
    for each in found.passes:
        assert each.verify.median > 0
        read = weight_bytes(pair[0]) + 3 * (40 + each.nodes) * row
        assert each.floor == pytest.approx(1e3 * read / found.bandwidth)


def test_verifications_of_several_sizes_are_timed(decoders):
    found = sweep_passes(decoders["tree"], [1, 8, 26], context=40, repeats=3)
    assert [each.nodes for each in found.passes] == [1, 8, 26]
    for each in found.passes:
        assert each.verify.median > each.readout.median > 0
        assert each.over_floor == each.verify.median / each.floor
    assert (found.context, found.graph) == (40, False)
    assert found.rows >= 66


@pytest.mark.parametrize(("nodes", "context"), [([0], 8), ([1], 0), ([8], 505)])
def test_a_sweep_that_does_not_fit_is_refused(decoders, nodes, context):
    with pytest.raises(RequestError, match="at most 512"):
        sweep_passes(decoders["tree"], nodes, context=context)


def test_the_weights_that_a_pass_reads_are_counted():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "head_dim": 4, "num_attention_heads": 2}
    shared = {"num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 32}
    attention, mlp, norms, readout = 2 * 8 * 8 + 2 * 4 * 8, 3 * 8 * 16, 3 * 8, 32 * 8
    dense = tiny_target("llama", **sizes, **shared)
    assert weight_bytes(dense) == 4 * (attention + mlp + norms + readout)
    tied = tiny_target("llama", **sizes, **shared, tie_word_embeddings=True)
    assert weight_bytes(tied) == weight_bytes(dense), "the LM head is read, whatever it is tied to"
    routed = tiny_target("mixtral", **sizes, **shared, num_local_experts=4, num_experts_per_tok=2)
    router = 4 * 8
    for rows, read in ((1, 2.0), (2, 3.0), (100, 4.0)):
        expected = 4 * (attention + router + norms + readout + read * mlp)
        assert weight_bytes(routed, rows) == pytest.approx(expected)


def test_the_bandwidth_is_one_that_a_machine_has():
    assert 1e7 < read_bandwidth(torch.device("cpu"), 1 << 20) < 1e14
    assert peak_memory(torch.device("cpu")) > 1e6


def test_transformers_answers_a_batch_as_it_answers_each(pair):
    together, _ = stock_texts(pair[0], PROMPTS, PARAMS)
    alone = [stock_texts(pair[0], [prompt], PARAMS)[0][0] for prompt in PROMPTS]
    looked_up = [stock_texts(pair[0], [prompt], PARAMS, lookup=4)[0][0] for prompt in PROMPTS]
    assert together == alone == looked_up


@pytest.mark.parametrize(
    ("baselines", "batch", "problem"),
    [
        (["hff"], 1, "Did you mean 'hf'"),
        (["hf", "plain", "hf"], 1, "named twice"),
        (["hf-assisted-ngram"], 2, "one prompt at a time"),
    ],
)
def test_baselines_that_there_are_not_are_refused(baselines, batch, problem):
    with pytest.raises(RequestError, match=problem):
        check_baselines(baselines, batch)


def test_a_decoder_with_the_name_of_a_baseline_is_refused(decoders):
    plain = {"plain": decoders["chain"]}
    with pytest.raises(RequestError, match="'plain' is measured as a baseline already"):
        measure_speed(plain, PROMPTS, PARAMS)
    rows = measure_speed(plain, PROMPTS[:1], PARAMS, baselines=("hf",)).rows
    assert [row.name for row in rows] == ["plain", "hf"]


def test_specs_of_one_run_share_a_target():
    first, second = DecoderSpec(name="a"), DecoderSpec(name="b", target={"model": "other"})
    with pytest.raises(RequestError, match=r"'a' has .* and 'b' 'other'"):
        prepare([first, second])
    with pytest.raises(RequestError, match="the same name"):
        prepare([first, first])
