"""The figures of a benchmark follow from its trials; tables, Markdown and JSON show them."""

from __future__ import annotations

import json

import pytest

from eagle.bench.outcome import Row, Speed, Trial
from eagle.bench.quartiles import Quartiles
from eagle.bench.report import (
    Setting,
    bandwidth_note,
    cycle_table,
    markdown,
    speed_json,
    speed_table,
    speedup_table,
)

PHASES = {"draft": 1.0, "verify": 4.0, "accept": 0.5, "commit": 0.5}
SETTING = Setting("tiny's function at the x shape", "a CPU", "float32", "2 prompts", "eagle", {})


def trial(prompt, tokens, seconds, cycles=0, **changes):
    return Trial(
        prompts=(prompt,),
        answers=(tuple(tokens),),
        seconds=seconds,
        memory=10**9 * (prompt + 1),
        cycles=cycles,
        verifications=cycles,
        **changes,
    )


@pytest.fixture
def speed():
    ours = (
        trial(0, range(11), 1.0, 4, reading=0.2),
        trial(1, range(21), 2.0, 4, reading=0.4),
        trial(2, range(10), 1.0, 3, reading=0.0),
    )
    plain = (
        trial(0, range(11), 2.0, 10),
        trial(1, range(1, 22), 2.0, 20),
        trial(2, range(10), 4.0, 9),
    )
    hf = (trial(0, range(11), 4.0), trial(1, range(21), 8.0), trial(2, range(5), 4.0))
    return Speed(
        rows=(
            Row("ours", ours, lossless=False, nodes=4, phases=PHASES, floor=2.0),
            Row("plain", plain, lossless=True, nodes=1, phases=PHASES, floor=2.0),
            Row("hf", hf, lossless=True, nodes=None, floor=2.0),
        ),
        baselines=("plain", "hf"),
        greedy=True,
        bandwidth=3e9,
    )


def test_figures_follow_from_the_trials(speed):
    ours, plain, hf = speed.rows
    assert ours.tokens_per_second == 42 / 4
    assert ours.tau == (10 + 20 + 9) / 11, "the first token of an answer is no cycle's"
    assert ours.cycle == pytest.approx(1e3 * (4.0 - 0.6) / 11), "prompts' passes are left out"
    assert (ours.share, ours.memory) == (0.5, 3 * 10**9)
    assert ours.speedup(plain) == Quartiles(1.5, 2.0, 3.0)
    assert ours.speedup(hf) == Quartiles(4.0, 4.0, 6.0)
    assert (ours.same(plain), ours.same(hf)) == (2, 2)
    assert (hf.tau, hf.cycle, hf.share) == (None, None, None)


def test_quartiles_of_few():
    assert Quartiles.of([2.0]) == Quartiles(2.0, 2.0, 2.0)
    assert Quartiles.of([4.0, 2.0]) == Quartiles(2.5, 3.0, 3.5)
    assert Quartiles.of([2.0]).show() == "2.00"
    assert Quartiles.of([4.0, 2.0]).show(1) == "3.0 (2.5-3.5)"


def test_tables_show_every_row_and_call_a_lossy_spec_lossy(speed):
    figures, ratios, cycles = speed_table(speed), speedup_table(speed), cycle_table(speed)
    assert figures[0] == ["", "tokens/s", "tau", "peak GB", "same as plain", "same as hf"]
    assert figures[1] == ["ours (not lossless)", "10.5", "3.55", "3.00", "2 of 3", "2 of 3"]
    assert [row[0] for row in figures[1:]] == ["ours (not lossless)", "plain", "hf"]
    assert ratios[0] == ["", "over plain", "over hf"]
    assert ratios[1] == ["ours (not lossless)", "2.00 (1.50-3.00)", "4.00 (4.00-6.00)"]
    assert ratios[2][1] == "", "nothing is held against itself"
    assert cycles[0][-3:] == ["floor", "share", "steps"]
    assert [row[0] for row in cycles[1:]] == ["ours (not lossless)", "plain"]
    assert cycles[1][3:10] == ["1.00", "4.00", "0.50", "0.50", "303.09", "2.00", "50%"]
    assert float(cycles[1][10]) == pytest.approx((3400 / 11) / (8000 / 39), abs=0.01)


def test_identity_is_not_claimed_where_chance_decides(speed):
    sampled = Speed(speed.rows, speed.baselines, greedy=False, bandwidth=3e9)
    assert "same as plain" not in speed_table(sampled)[0]
    rows = speed_json(SETTING, {}, sampled)["rows"]
    assert [row["identical"] for row in rows] == [None, None, None]


def test_markdown_and_json_say_what_was_measured(speed):
    text = markdown(
        SETTING, bandwidth_note(speed.bandwidth), [speed_table(speed), cycle_table(speed)]
    )
    assert text.startswith("**tiny's function at the x shape, float32, a CPU; 2 prompts**\n")
    assert "| hf | " in text
    assert "3 GB/s" in text
    shown = json.loads(json.dumps(speed_json(SETTING, {}, speed)))
    assert shown["label"] == "tiny's function at the x shape"
    first = shown["rows"][0]
    assert first["lossless"] is False
    assert first["speedup"]["plain"] == {"low": 1.5, "median": 2.0, "high": 3.0}
    assert first["identical"] == {"plain": 2, "hf": 2}
    assert first["trials"][0]["answers"] == [11]
    host = 1e3 * (4.0 - 0.6) / 11 - 6.0
    assert first["phases_ms"] == PHASES | {"host": pytest.approx(host)}


def test_pictures_are_drawn(speed, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from eagle.bench.plots import draw_speed

    files = draw_speed(SETTING, speed, tmp_path / "new")
    assert [path.name for path in files] == ["speedup.png", "cycle.png"]
    for path in files:
        picture = imread(path)[..., :3]
        assert picture.shape[1] == 9 * 150
        assert picture.min() < 0.1 < 0.9 < picture.max(), "there is ink on paper"
        edge = picture[:, [0, -1]]
        assert edge.min() == 1.0, "nothing is cut off at the sides"
