"""Figures of serving: percentiles are values that were seen, and ratios are of paired rounds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle.bench.report import Setting
from eagle.bench.served import Cell, Contender, Identity, Load, Percentiles, Served, Service
from eagle.bench.throughput import (
    latency_table,
    throughput_json,
    throughput_note,
    throughput_table,
)

SETTING = Setting("tiny", "a CPU", "float32", "2 prompts", "eagle bench", {"python": "3"})


def request(*times, sizes=None, due=0.0, first=5):
    sizes = sizes or (1,) * len(times)
    answer = tuple(range(first, first + sum(sizes)))
    return Served(0, answer, due, times, sizes, verifications=len(times) - 1)


def contender(name, *seconds, **more):
    """One whose rounds each have a request of three tokens that ends after some seconds."""
    rounds = tuple(
        Service((request(end / 2, end, sizes=(1, 2)),), memory=10**9, **more) for end in seconds
    )
    return Contender(name, rounds)


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=250))
def test_a_percentile_is_the_least_value_that_as_many_are_not_above(values):
    found = Percentiles.of(values)
    for share, value in ((50, found.p50), (99, found.p99)):
        below = sum(one <= value for one in values)
        assert value in values
        assert 100 * below >= share * len(values)
        assert 100 * sum(one < value for one in values) < share * len(values)
    assert found.n == len(values)


def test_of_fewer_than_a_hundred_the_99th_percentile_is_the_largest():
    assert Percentiles.of(range(99)).p99 == 98
    assert Percentiles.of(range(100)).p99 == 98
    assert Percentiles.of([]) is None


def test_latency_is_counted_from_when_a_request_was_due():
    one = request(3.0, 3.5, 4.5, due=2.0, sizes=(1, 3, 2))
    assert (one.first, one.whole) == (1.0, 2.5)
    assert one.token == pytest.approx(1.5 / 5), "tokens of the first delivery take no time"
    assert one.waits == [0.5, 1.0]
    assert request(3.0).token is None


def test_a_round_ends_with_its_last_token():
    service = Service((request(1.0, 2.0), request(0.5, 4.0, due=0.5)), memory=0)
    assert service.seconds == 4.0
    assert service.tokens_per_second == 1.0
    assert service.latency == pytest.approx((2.0 + 3.5) / 2)


def test_ratios_are_taken_round_by_round():
    quick, plain = contender("quick", 1.0, 2.0, 4.0), contender("plain", 2.0, 6.0, 4.0)
    assert quick.speedup(plain).median == 2.0
    assert (quick.speedup(plain).low, quick.speedup(plain).high) == (1.5, 2.5)
    assert quick.quickness(plain).median == 2.0
    assert quick.tau == 2.0


def test_tables_hold_every_load_and_say_what_differs():
    quick = contender("quick", 1.0, captured=2)
    quick = Contender("quick", quick.rounds, lossless=False, identity=Identity(4, 1, 2))
    plain = contender("plain", 2.0)
    cells = [Cell(Load(4), (quick, plain)), Cell(Load(4, 0.5), (quick, plain))]
    table = throughput_table(cells)
    names = [row[0] for row in table[1:]]
    lossy = "quick (not lossless)"
    assert names == [f"{lossy}, batch 4", "plain, batch 4", f"{lossy}, 0.5/s", "plain, 0.5/s"]
    assert table[1][-1] == "1 of 4, 2 tied, 1 DIFFER"
    assert table[2][2] == table[2][-1] == "", "plain is not held against itself"
    assert latency_table(cells)[1][1:] == ["500 / 500", "250 / 250", "500 / 500", "1.00 / 1.00"]
    note = throughput_note(cells)
    assert "The 99th percentile of 1 requests is the slowest" in note
    assert "quick was timed at batch 4, 2 graphs had to be captured" in note
    shown = json.loads(json.dumps(throughput_json(SETTING, {}, cells)))
    assert [load["rate"] for load in shown["loads"]] == [None, 0.5]
    first = shown["loads"][0]["rows"][0]
    assert first["over_plain"]["median"] == 2.0
    assert first["first_token"] == {"n": 1, "p50": 0.5, "p99": 0.5}
    assert first["rounds"][0]["requests"][0]["answer"] == 3, "how many tokens, not which"


def test_the_curve_is_drawn_with_nothing_cut_off(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from eagle.bench.curves import draw_throughput

    rows = (contender("quick", 1.0, 1.5), contender("slow", 3.0), contender("plain", 2.0, 2.5))
    cells = [Cell(Load(1), rows), Cell(Load(4), rows), Cell(Load(4, 0.5), rows)]
    picture = imread(draw_throughput(SETTING, cells, tmp_path / "a.png"))[..., :3]
    assert picture.min() < 0.1 < 0.9 < picture.max(), "there is ink on paper"
    assert picture[:, [0, -1]].min() == 1.0, "nothing is cut off at the sides"
