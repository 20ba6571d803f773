"""What counts as a change of an object's attributes."""

import random

import numpy as np
import pytest
import torch

from eagle.cycle.snapshot import Snapshot


class Thing:
    pass


SAME = [
    (1, 1), (1.5, 1.5), (float("nan"), float("nan")), ("a", "a"), (None, None),
    ([1, [2]], [1, [2]]),
    ({"a": {1, 2}}, {"a": {2, 1}}), (torch.ones(2), torch.ones(2)), (np.ones(2), np.ones(2)),
    ([0] * 5000, [1] * 5000),
]  # fmt: skip
OTHER = [
    (1, 2), (True, None), ("a", "b"), ([1, [2]], [1, [3]]), ([1], [1, 2]), ({"a": 1}, {"b": 1}),
    (torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.ones(3)), (np.ones(2), np.zeros(2)),
    (torch.ones(2), torch.ones(2, dtype=torch.int32)), ([0] * 5000, [0] * 5001), (Thing(), Thing()),
    (torch.ones(1), None),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), SAME)
def test_equal_values_are_no_change(before, after):
    assert Snapshot({"x": before}).changed({"x": after}) is None


@pytest.mark.parametrize(("before", "after"), OTHER)
def test_other_values_are(before, after):
    assert Snapshot({"w": 1, "x": before}).changed({"w": 1, "x": after}) == "x"


def test_attributes_that_come_and_go_are_changes():
    assert Snapshot({}).changed({"x": 1}) == "x"
    assert Snapshot({"x": 1}).changed({}) == "x"


@pytest.mark.parametrize("generator", [random.Random(0), torch.Generator()])
def test_a_generator_that_drew_has_changed(generator):
    before = Snapshot({"g": [generator]})
    assert before.changed({"g": [generator]}) is None
    if isinstance(generator, random.Random):
        generator.random()
    else:
        torch.rand(1, generator=generator)
    assert before.changed({"g": [generator]}) == "g"


def test_what_is_changed_in_place_has_changed():
    things = {"a": torch.ones(2), "b": [1], "c": {"d": [1]}}
    before = Snapshot(things)
    things["c"]["d"].append(2)
    assert before.changed(things) == "c"
