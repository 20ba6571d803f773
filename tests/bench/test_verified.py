"""Servers held against a target from outside: right ones hold, wrong ones do not."""

from __future__ import annotations

import json

import pytest

from eagle.bench import verify_served, verify_served_greedy
from eagle.cli import main
from eagle.errors import RemoteError, RequestError
from eagle.remote import Server
from eagle.target import Target, load_target

PROMPTS = ["hello", "once upon a time", "what is the sky"]
HOW = {"temperature": 1.0, "samples": 32, "tokens": 4, "alpha": 0.01, "seed": 0}


@pytest.fixture(scope="module")
def target(decoder):
    return load_target(decoder.spec.target)


class Other:
    """A server of somebody else's: what it takes, and how it tells tokens, is chosen.

    Args:
        decoder: what it answers by.
        takes: fields that it knows beside OpenAI's.
        says: makes a choice's fields of a result.
    """

    url = "http://other"

    def __init__(self, decoder, takes, says, *, names_fields=True):
        self.decoder, self.takes, self.says = decoder, set(takes), says
        self.names_fields = names_fields
        self.asked = []

    def post(self, path, body):
        self.asked.append(body)
        known = {"model", "prompt", "n", "max_tokens", "temperature", "top_p", "seed", "logprobs"}
        for name in sorted(set(body) - known - self.takes):
            raise RemoteError("unknown field", 400, name if self.names_fields else None)
        given = {
            "max_new_tokens": body["max_tokens"],
            "temperature": body["temperature"],
            "ignore_eos": bool(body.get("ignore_eos")),
        }
        prompts = [body["prompt"]] * body["n"]
        results = self.decoder.generate(prompts, seed=body.get("seed"), **given)
        return {"choices": [self.says(result) | ended(result) for result in results]}


def ended(result):
    return {"finish_reason": result.finish_reason}


def test_ours_holds_and_tells_its_tau(site, target):
    found = verify_served(target, Server(site.url), "tiny", PROMPTS, **HOW)
    assert found.holds
    assert found.test.draws == 3 * 32 * 4
    assert found.tau > 1.2


def test_a_server_at_another_temperature_does_not_hold(site, target, monkeypatch):
    params = site.service.intake._params

    def hotter(body, limit):
        right = params(body, limit)
        return right.model_copy(update={"temperature": right.temperature * 1.5})

    monkeypatch.setattr(site.service.intake, "_params", hotter)
    assert not verify_served(target, Server(site.url), "tiny", PROMPTS, **HOW).holds


@pytest.mark.parametrize("names_fields", [True, False])
def test_a_server_that_knows_openais_fields_alone_is_tested_by_the_tokens_texts(
    decoder, target, names_fields
):
    def texts(result):
        return {
            "logprobs": {"tokens": [decoder.target.tokenizer.decode([t]) for t in result.tokens]}
        }

    other = Other(decoder, (), texts, names_fields=names_fields)
    found = verify_served(target, other, "m", PROMPTS[:2], **{**HOW, "samples": 16})
    assert found.holds
    assert found.tau == 0
    assert other.asked[-1].keys() & {"ignore_eos", "top_k"} == set()


def test_answers_that_end_early_count_as_far_as_they_go(decoder, target, monkeypatch):
    # Token 7 is what every fourth answer or so has, so that many end early.
    monkeypatch.setattr(Target, "eos_tokens", frozenset({7}))

    def without_end(result):
        tokens = [token for token in result.tokens if token != 7]
        return {"logprobs": {"tokens": [f"token_id:{token}" for token in tokens or [7]]}}

    other = Other(decoder, ["return_tokens_as_token_ids"], without_end)
    found = verify_served(target, other, "m", PROMPTS, **HOW)
    assert found.holds
    assert found.test.draws < 3 * 32 * 4


def numbers(result):
    return {"token_ids": list(result.tokens)}


KNOWN = ("return_token_ids", "return_tokens_as_token_ids", "ignore_eos")


def test_many_answers_are_asked_for_in_several_requests_with_chance_of_their_own(decoder, target):
    other = Other(decoder, KNOWN, numbers)
    found = verify_served(target, other, "m", PROMPTS[:1], **{**HOW, "samples": 40})
    assert found.test.draws == 40 * 4
    taken = [body for body in other.asked if body.keys() - KNOWN == other.asked[-1].keys() - KNOWN]
    assert [body["n"] for body in taken] == [16, 16, 8]
    assert len({body["seed"] for body in taken}) == 3


def test_at_temperature_0_each_token_of_a_server_is_held_against_the_targets_choice(site, target):
    found = verify_served_greedy(target, Server(site.url), "tiny", PROMPTS, max_new_tokens=24)
    assert (found.holds, found.strays) == (True, ())
    assert (found.prompts, found.tokens) == (3, 3 * 24)
    assert found.tau > 1.2


def test_one_token_that_the_target_would_not_have_chosen_is_found(decoder, target):
    def strayed(result):
        tokens = list(result.tokens)
        tokens[5] = (tokens[5] + 1) % target.info.vocab_size
        return {"token_ids": tokens}

    other = Other(decoder, KNOWN, strayed)
    found = verify_served_greedy(target, other, "m", PROMPTS[:1], max_new_tokens=6)
    assert not found.holds
    assert [(one.prompt, one.position) for one in found.mistakes] == [(0, 5)]
    assert found.tau == 0


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (lambda result: {}, "neither token ids nor log probabilities"),
        (lambda result: {"token_ids": [99]}, "not this target's"),
        (lambda result: {"token_ids": [5]}, "it has to take 'ignore_eos'"),
        (lambda result: {"logprobs": {"tokens": ["zz"]}}, "not the text of exactly one token"),
    ],
)
def test_what_cannot_be_read_is_told(decoder, target, says, told):
    other = Other(decoder, ["ignore_eos"], says)
    with pytest.raises((RemoteError, RequestError), match=told):
        verify_served(target, other, "m", PROMPTS[:1], **{**HOW, "samples": 2})


def test_the_command_ends_with_the_verdict(site, home, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    words = ["verify", "--server", site.url, "--target", str(home), "--prompts", str(file)]
    words += ["--set", "target.dtype=float32"]

    def ran(*more):
        with pytest.raises(SystemExit) as exit_:
            main([*words, *more])
        return exit_.value.code, *capsys.readouterr()

    def run(*more):
        return ran("--samples", "16", "--tokens", "4", *more)

    def run_greedy(*more):
        return ran("--temperature", "0", *more)

    status, out, _ = run()
    assert status == 0
    assert out.splitlines()[-1].startswith("consistent with the target's distribution: p = ")
    assert "held against" in out
    status, out, _ = run("--json")
    assert json.loads(out)["sampled"]["test"]["draws"] == 3 * 16 * 4
    status, out, _ = run_greedy("--max-new-tokens", "8")
    assert (status, "24 of 24 tokens to 3 prompts are the target's choice" in out) == (0, True)
    assert out.splitlines()[-1] == "holds: every token is the target's choice"
    status, out, _ = run_greedy("--json")
    assert (status, json.loads(out)["greedy"]["strays"]) == (0, [])
    status, _, err = run_greedy("--samples", "3")
    assert (status, "above 0 only" in err) == (2, True)
    status, _, err = run("--spec", "chain")
    assert (status, "--spec does not go with --server" in err) == (2, True)
    status, _, err = run("--max-new-tokens", "3")
    assert (status, "--temperature 0 only" in err) == (2, True)
