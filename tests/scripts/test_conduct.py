"""Whatever fails in a run is named, the rest goes on, and what is known is written."""

import asyncio
import json

import pytest

from check_gpu.conduct import Run, Side
from check_gpu.figures import Record
from check_gpu.plan import Lane, Plan

MEASURE = """
import json, sys, time
asked = json.loads(sys.argv[1])
def say(**what): print(json.dumps(what), flush=True)
if asked.get("machine"):
    say(ok={"hardware": "a fake", "versions": {"torch": "0"}})
    sys.exit()
if asked["batches"] == [3]:
    sys.exit("no room for 3")
say(ok={"prompts": 1, "texts": 1})
for line in sys.stdin:
    asked = json.loads(line)
    spec, batch, temperature = asked["case"]
    if spec == "plain" and batch == 2 and asked["do"] == "round":
        time.sleep(60) if temperature else sys.exit("out of memory")
    elif spec == "plain" and asked["do"] == "phases":
        say(error="no phases here")
    elif asked["do"] == "warm":
        say(ok={"seconds": 0.1})
    else:
        say(ok={"cycle_ms": 1.0 + batch} if asked["do"] == "round" else {"pass_ms": 0.5})
"""


def plan(**changes):
    whole = {
        "shapes": ("tiny",), "batches": (1, 2, 3), "specs": ("eagle-reference", "plain"),
        "temperatures": (0.0,), "rounds": 2, "tokens": 8, "length": 64, "prompts": ("a",),
        "starts": 1, "nodes": (1,),
    }  # fmt: skip
    return Plan(**(whole | changes))


@pytest.fixture
def conducted(tmp_path):
    measure = tmp_path / "measure.py"
    measure.write_text(MEASURE)

    def go(seconds=60.0, sides=("here",), **changes):
        said = []
        made = [Side(name, tmp_path) for name in sides]
        out = tmp_path / "out"
        out.mkdir()
        run = Run(plan(**changes), made, ("cycles",), "cpu", out, seconds, said.append, measure)
        asyncio.run(run.all())
        return [side.record for side in made], said, out

    return go


def test_what_fails_is_named_and_the_rest_is_measured(conducted):
    (record,), said, out = conducted()
    assert record.figures["tiny/eagle-reference/b1/t0/cycle_ms"] == [2.0, 2.0]
    assert record.figures["tiny/plain/b1/t0/cycle_ms"] == [2.0, 2.0]
    assert record.figures["tiny/eagle-reference/b2/t0/cycle_ms"] == [3.0]
    assert record.missing["tiny/b3"] == "no room for 3"
    assert record.missing["tiny/plain/b2/t0 (round)"] == "out of memory"
    assert record.missing["tiny/plain/b1/t0 (phases)"] == "no phases here"
    assert any("no room for 3" in line for line in said)
    assert Record.read(out / "figures.json") == record


def test_sides_take_turns_and_are_written_apart(conducted):
    (here, beside), _, out = conducted(sides=("here", "beside"), batches=(1,))
    assert here.figures == beside.figures != {}
    assert json.loads((out / "beside.json").read_text())["hardware"] == "a fake"


def test_without_time_everything_is_named_as_missing(conducted):
    (record,), _, out = conducted(seconds=0.0, batches=(1,))
    assert not record.figures
    assert record.missing
    assert Record.read(out / "figures.json").missing == record.missing


def test_lanes_hold_every_batch_once_and_two_checkouts_share_a_device():
    whole = plan(shapes=("135m", "llama2-7b"), batches=(1, 8, 32))
    alone = [lane for lane in whole.lanes(twice=False) if lane.shape == "llama2-7b"]
    assert sorted(batch for lane in alone for batch in lane.batches) == [1, 8, 32]
    assert Lane("llama2-7b", (1, 8)) in whole.lanes(twice=True)
    assert not any(32 in lane.batches for lane in whole.lanes(twice=True) if lane.shape != "135m")
