"""``eagle verify`` as a user meets it: what it prints, and the exit status it ends with."""

from __future__ import annotations

import json

import pytest

from eagle.bench.prompts import read_prompts
from eagle.bench.verify import PROMPTS
from tests.bench.test_verify import WrongPositions

CHOICE = [
    "prompt", "position", "token", "other", "gap", "distance", "noise", "steps", "tie",
]  # fmt: skip
SAMPLED = ("--temperature", "1", "--samples", "32", "--batch", "32")
TYPICAL = ("--set", "acceptance=typical")


@pytest.fixture
def verify(eagle, folders, tmp_path):
    """Run the command on the tiny pair and a file of four prompts."""
    file = tmp_path / "prompts.txt"
    file.write_text("w5 w6 w7\nw10 w12 w14 w16\nw40 w43\nw9 w11\n")

    def run(*arguments):
        greedy = () if "--temperature" in arguments else ("--max-new-tokens", "24")
        given = ("--prompts", str(file), *greedy, *arguments)
        return eagle("verify", *folders.options(), *given)

    return run


def test_a_right_decoder_holds_with_status_0(verify):
    ran = verify()
    assert ran.status == 0
    assert "eagle with" in ran.out
    assert "float32, cpu, temperature 0" in ran.out
    for title in ("plain, same runtime", "transformers generate"):
        assert ran.out.partition(title)[2].split()[:5] == ["4", "of", "4", "0", "0"]
    assert ran.out.splitlines()[-1] == "holds: all 4 answers identical to both references"
    assert ran.err == "", "progress is for terminals"


def test_a_wrong_decoder_does_not_hold_with_status_1(verify, monkeypatch):
    monkeypatch.setattr("eagle.cycle.cycle.Step", WrongPositions)
    ran = verify()
    assert ran.status == 1
    assert "mistake" in ran.out
    assert ran.out.splitlines()[-1].startswith("does not hold: ")
    assert ran.err == ""


def test_the_json_at_temperature_0(verify, monkeypatch):
    shown = json.loads(verify("--json").out)
    assert list(shown) == [
        "holds", "verdict", "temperature", "identity", "dtype", "device", "spec", "lossless",
    ]  # fmt: skip
    assert (shown["holds"], shown["lossless"], shown["dtype"]) == (True, True, "float32")
    found = shown["identity"]
    assert list(found) == [
        "prompts", "mistakes", "tokens", "tau", "plain", "hf", "strays", "noise",
    ]  # fmt: skip
    assert found["plain"] == found["hf"] == {"prompts": 4, "identical": 4, "divergences": []}
    assert (found["prompts"], found["mistakes"], found["strays"]) == (4, 0, [])

    monkeypatch.setattr("eagle.cycle.cycle.Step", WrongPositions)
    ran = verify("--json")
    assert ran.status == 1
    shown = json.loads(ran.out)
    assert shown["holds"] is False
    assert shown["identity"]["mistakes"] > 0
    for choice in (*shown["identity"]["plain"]["divergences"], *shown["identity"]["strays"]):
        assert list(choice) == CHOICE


def test_the_json_above_temperature_0(verify):
    ran = verify(*SAMPLED, "--json", "--tokens", "4", "--alpha", "0.05")
    assert ran.status == 0
    shown = json.loads(ran.out)
    assert (shown["holds"], shown["lossless"], shown["temperature"]) == (True, True, 1.0)
    found = shown["sampled"]
    assert list(found) == ["prompts", "samples", "tokens", "tau", "test"]
    assert (found["prompts"], found["samples"], found["tokens"]) == (4, 32, 4)
    test = found["test"]
    assert list(test) == [
        "alpha", "p", "p_ranks", "p_contexts", "draws", "contexts", "repeated", "ranks", "power",
    ]  # fmt: skip
    assert (test["alpha"], test["draws"]) == (0.05, 4 * 32 * 4)
    assert list(test["ranks"][0]) == ["first", "last", "expected", "observed"]
    assert list(test["power"][0]) == ["departure", "share", "distance"]


def test_sampling_is_consistent_with_status_0(verify):
    ran = verify(*SAMPLED)
    assert ran.status == 0
    assert "1024 tokens: the first 8 of 32 answers to each of 4 prompts" in ran.out
    assert "size 0.01; found nine times out of ten:" in ran.out
    assert ran.out.splitlines()[-1].startswith("consistent with the target's distribution: p = ")


def test_a_lossy_spec_is_caught_and_says_so_everywhere(verify):
    ran = verify(*SAMPLED, *TYPICAL)
    assert ran.status == 1
    assert "not lossless: the acceptance rule 'typical'" in ran.err
    assert "(not lossless)" in ran.out.splitlines()[0]
    last = ran.out.splitlines()[-1]
    assert last.startswith("not the target's distribution: p = ")
    assert last.endswith("below 0.01; the spec is declared not lossless")
    shown = json.loads(verify(*SAMPLED, *TYPICAL, "--json").out)
    assert (shown["holds"], shown["lossless"]) == (False, False)


def test_a_lossy_spec_says_so_where_it_holds(verify):
    ran = verify(*TYPICAL)
    assert ran.status == 0, "at temperature 0 it decodes greedily"
    assert "not lossless" in ran.err
    assert ran.out.splitlines()[-1].endswith("the spec is not lossless, as declared")
    few = verify("--temperature", "1", "--samples", "1", "--tokens", "1", *TYPICAL)
    assert few.status == 0
    assert "not found even if in all draws" in few.out
    assert few.out.splitlines()[-1].endswith("which this test had not the power to see")


def test_plain_decoding_is_its_own_reference(eagle, folders):
    given = ("--spec", "plain", "--target", str(folders.target), "--max-new-tokens", "4")
    ran = eagle("verify", *given, "--set", "target.dtype=float32")
    assert ran.status == 0
    assert f"all {len(PROMPTS)} answers identical" in ran.out, "the prompts are our own"


def test_limit_takes_the_first_prompts(verify):
    assert json.loads(verify("--limit", "2", "--json").out)["identity"]["prompts"] == 2


def test_batch_is_the_decoders(verify):
    assert json.loads(verify("--batch", "3", "--json").out)["spec"]["runtime"]["max_batch"] == 3


def test_our_own_prompts_could_stand_in_a_file(tmp_path):
    file = tmp_path / "own.txt"
    file.write_text("\n".join(PROMPTS))
    assert read_prompts(file) == list(PROMPTS)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--samples", "4"), "--samples goes with --temperature above 0 only"),
        (("--alpha", "0.1"), "--alpha goes with --temperature above 0 only"),
        (("--tokens", "4"), "--tokens goes with --temperature above 0 only"),
        (
            ("--temperature", "1", "--max-new-tokens", "4"),
            "--max-new-tokens goes with --temperature 0 only",
        ),
        (("--temperature", "1", "--alpha", "0.9"), "alpha is 0.9; it should be from 0.001 to 0.2"),
        (("--temperature", "-1"), "--temperature: should be greater than or equal to 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens: should be greater than or equal to 1"),
        (("--prompts", "not-there.txt"), "not-there.txt cannot be read"),
        (("--spec", "egle"), "Did you mean 'eagle'?"),
        (("--set", "runtime.max_length=3"), "holds 3"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_status_2(arguments, problem, verify):
    ran = verify(*arguments)
    assert ran.status == 2
    assert ran.out == ""
    (sentence,) = ran.err.splitlines()
    assert sentence.startswith("error: ")
    assert problem in sentence
