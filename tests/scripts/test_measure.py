"""The measuring program times the decoders that it is asked for."""

import pytest

from check_gpu.measure import Timed

ASKED = {
    "shape": "tiny",
    "specs": ["eagle-reference", "plain"],
    "batches": [2],
    "device": "cpu",
    "prompts": ["One prompt.", "Another, longer prompt."],
    "tokens": 12,
    "length": 128,
}


@pytest.fixture(scope="module")
def timed():
    return Timed(ASKED)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_round_is_timed_and_its_tau_can_be_repeated(timed, temperature):
    case = ("eagle-reference", 2, temperature)
    assert timed.warm(case, 1)["seconds"] > 0
    first, again = timed.round(case, 0), timed.round(case, 0)
    assert min(first.values()) > 0
    assert first["tau"] == again["tau"] > 1
    assert set(first) == {"cycle_ms", "tau", "tokens_s", "read_ms"}


def test_plain_decoding_commits_one_token_a_pass(timed):
    assert timed.round(("plain", 2, 0.0), 0)["tau"] == 1


def test_phases_are_those_of_the_case(timed):
    found = timed.phases(("eagle-reference", 2, 0.0))
    assert set(found) == {"pass_ms", "draft_ms"}
    assert min(found.values()) > 0
