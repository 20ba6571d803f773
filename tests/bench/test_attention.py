"""Timing attention backends by themselves."""

import json

import pytest
import torch

from eagle.bench.attention import (
    AttentionShape,
    AttentionTime,
    AttentionTimes,
    attention_times,
)
from eagle.bench.quartiles import Quartiles
from eagle.bench.report import attention_table
from eagle.cli import main
from eagle.errors import RequestError
from eagle.plugin.roles import BuildContext
from eagle_plugins.attention.sdpa import Sdpa, SdpaConfig

SHAPE = AttentionShape(
    batch=2, heads=4, kv_heads=2, head_dim=16, nodes=5, context=40, rows=64
)  # fmt: skip
CPU = torch.device("cpu")


class Counting(Sdpa):
    """Notes what it is given."""

    def __init__(self):
        super().__init__(SdpaConfig(), BuildContext())
        self.seen = []

    def attend(self, query, keys, values, plan, scaling):
        self.seen.append((tuple(query.shape), tuple(keys.shape), scaling))
        return super().attend(query, keys, values, plan, scaling)


def test_backends_take_turns_on_tensors_of_the_shape():
    one, two = Counting(), Counting()
    found = attention_times(
        {"one": one, "two": two}, SHAPE, dtype=torch.float32, device=CPU, repeats=3
    )
    assert [each.name for each in found.times] == ["one", "two"]
    assert one.seen == two.seen == [((2, 4, 5, 16), (2, 2, 64, 16), 0.25)] * 4
    for each in found.times:
        assert not each.launched
        bytes_read = 2 * 2 * 2 * 45 * 16 * 4
        assert each.bandwidth == pytest.approx(1e6 * bytes_read / each.microseconds.median)


def test_what_cannot_be_captured_is_timed_and_marked():
    quartiles = Quartiles(1, 2, 3)
    times = (
        AttentionTime("one", quartiles, 1e9, False),
        AttentionTime("two", quartiles, 5e8, True),
    )
    names = [row[0] for row in attention_table(AttentionTimes(times, 2e9))]
    assert names == ["", "one", "two (not captured)"]


class Reading(Sdpa):
    """Waits for the device, which no graph can."""

    def attend(self, query, keys, values, plan, scaling):
        if keys.sum().item() == 0:
            return query
        return super().attend(query, keys, values, plan, scaling)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.gpu
def test_a_backend_that_waits_for_the_device_is_launched_call_by_call():
    backends = {
        "reading": Reading(SdpaConfig(), BuildContext()), "sdpa": Sdpa(SdpaConfig(), BuildContext())
    }  # fmt: skip
    found = attention_times(
        backends, SHAPE, dtype=torch.float32, device=torch.device("cuda"), repeats=2
    )
    assert [each.launched for each in found.times] == [True, False]


def test_a_nodes_mask_is_that_of_a_tree():
    from eagle.bench.attention import _step

    step = _step(SHAPE, CPU)
    assert step.tail[0].sum(1).tolist() == [1, 2, 2, 2, 2], "a root and its four children"
    assert step.positions[1].tolist() == [40, 41, 41, 41, 41]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kv_heads": 3}, "4 query heads cannot share 3 KV heads"),
        ({"rows": 44}, "need a cache of at least 45 rows, not 44"),
        ({"nodes": 0}, "at least 1"),
    ],
)
def test_impossible_shapes_are_refused(changed, message):
    shape = AttentionShape(**(vars(SHAPE) | changed))
    with pytest.raises(RequestError, match=message):
        attention_times({}, shape, dtype=torch.float32, device=CPU)


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    sizes = "--heads 4 --kv-heads 2 --head-dim 16 --nodes 5 --context 40 --rows 64 --repeats 2"
    file = tmp_path / "times.json"
    words = ["bench", "attention", "--backend", "sdpa", *sizes.split(), "--json", str(file)]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--dtype", "float32", "--device", "cpu"])
    assert not ended.value.code
    found = json.loads(file.read_text())
    assert found["times"][0]["name"] == "sdpa"
    assert found["sizes"]["context"] == 40
    assert "of read bandwidth" in capsys.readouterr().out
