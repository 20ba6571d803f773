"""A draft head that never agrees with its target is named, once."""

import logging

import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.decoding.stranger import CYCLES
from eagle.testing import tiny_head


def decoder(target, folder, **parts):
    parts = {"tree": {"name": "chain", "depth": 2}} | parts
    return Decoder.from_spec(
        DecoderSpec(head={"name": "eagle", "weights": str(folder)}, **parts), target=target
    )


@pytest.fixture
def stranger(pair, tmp_path):
    """A head of the same sizes that proposes what the target never says."""
    head = tiny_head(pair[0])
    with torch.no_grad():
        for parameter in head.module.parameters():
            parameter.zero_()
    head.save(tmp_path)
    return tmp_path


def said(caplog):
    return [r.getMessage() for r in caplog.records if "tau exactly 1.00" in r.getMessage()]


def generate(made, count, prompts=([3, 5, 7],)):
    return made.generate([*map(list, prompts)], max_new_tokens=count, ignore_eos=True)


def test_a_head_that_is_never_right_is_named_once(pair, stranger, caplog):
    made = decoder(pair[0], stranger)
    with caplog.at_level(logging.WARNING):
        (result,) = generate(made, CYCLES)
        assert result.stats.tau == 1.0
        assert said(caplog) == []
        generate(made, 3 * CYCLES)
        generate(made, 3 * CYCLES)
    (message,) = said(caplog)
    assert f"in {CYCLES} cycles" in message
    assert "another model of the same sizes" in message
    assert "a draft head of EAGLE-1 or EAGLE-2 with one layer" in message


def test_slots_count_by_themselves(pair, stranger, caplog):
    generate(decoder(pair[0], stranger), 1 + CYCLES // 2, prompts=([3, 5, 7], [4, 6, 8]))
    assert len(said(caplog)) == 1


def test_a_head_that_is_right_now_and_then_is_none_of_those(pair, caplog):
    made = decoder(pair[0], pair[1])
    (result,) = generate(made, 4 * CYCLES)
    assert result.stats.tau > 1
    generate(made, 4 * CYCLES)
    assert said(caplog) == []


def test_no_head_is_no_stranger(pair, caplog):
    made = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=pair[0])
    generate(made, 2 * CYCLES)
    assert said(caplog) == []
