"""Chats and completions, whole and streamed: what is answered is what the decoder says."""

from __future__ import annotations

import pytest

from eagle.plugin import derived_seed
from tests.serve.conftest import until

TALK = [{"role": "user", "content": "hello"}]


def lone(decoder, prompt="hello", *, raw=False, **params):
    given = {"max_new_tokens": 8, "temperature": 0} | params
    return decoder.generate(prompt, raw=raw, **given)


def test_a_chat_says_what_the_decoder_says_alone(site, decoder):
    answer = site.chat(temperature=0)
    expected = lone(decoder)
    assert answer.status == 200
    (choice,) = answer.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert choice["finish_reason"] == expected.finish_reason
    assert answer.json["model"] == "tiny"
    assert answer.json["usage"] == {
        "prompt_tokens": len(expected.prompt_tokens),
        "completion_tokens": len(expected.tokens),
        "total_tokens": len(expected.prompt_tokens) + len(expected.tokens),
    }


def test_acceptance_is_told_as_vllm_spells_it(site, decoder):
    stats = lone(decoder, max_new_tokens=24).stats
    told = site.chat(temperature=0, max_tokens=24).json["metrics"]["speculative_decoding"]
    accepted = sum(stats.accepted_per_position)
    assert told["mean_acceptance_length"] == pytest.approx(1 + accepted / stats.cycles)
    assert told["num_spec_steps"] == stats.cycles > 1
    assert told["num_accepted_draft_tokens"] == accepted > 0
    assert told["draft_acceptance_rate"] == pytest.approx(accepted / (15 * stats.cycles))
    assert told["num_draft_tokens"] == stats.cycles * 15
    histogram = told["acceptance_histogram"]
    assert sum(histogram) == stats.cycles
    assert sum(size * count for size, count in enumerate(histogram)) == accepted
    # All but the last cycle, which the end may have cut, committed one token more than they took.
    whole = [size - 1 for size in stats.accepted_per_cycle[:-1]]
    assert all(histogram[size] >= whole.count(size) for size in range(4))


def test_a_streams_pieces_make_the_same_text(site, decoder):
    expected = lone(decoder, max_new_tokens=24)
    answer = site.chat(
        temperature=0, max_tokens=24, stream=True, stream_options={"include_usage": True}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    first, *middle, last = answer.events
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(e["choices"][0]["delta"].get("content", "") for e in middle) == expected.text
    assert [e["choices"][0]["finish_reason"] for e in middle[:-1]] == [None] * (len(middle) - 1)
    assert middle[-1]["choices"][0]["finish_reason"] == "length"
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 24
    assert last["metrics"]["speculative_decoding"]["num_spec_steps"] == expected.stats.cycles
    assert {event["id"] for event in answer.events} == {first["id"]}
    assert [event["usage"] for event in answer.events[:-1]] == [None] * (len(middle) + 1)


def test_a_completion_goes_on_from_its_prompt_and_takes_token_ids(site, decoder):
    expected = lone(decoder, raw=True)
    assert site.complete(temperature=0).json["choices"][0]["text"] == expected.text
    ids = list(expected.prompt_tokens)
    assert site.complete(temperature=0, prompt=ids).json["choices"][0]["text"] == expected.text
    many = site.complete(temperature=0, prompt=[ids, ids[:2]]).json
    assert [choice["index"] for choice in many["choices"]] == [0, 1]
    assert many["choices"][1]["text"] == lone(decoder, ids[:2]).text
    assert many["usage"]["prompt_tokens"] == len(ids) + 2
    pieces = site.complete(temperature=0, stream=True).events
    assert "".join(event["choices"][0]["text"] for event in pieces) == expected.text


def test_n_answers_differ_and_a_seed_repeats_them(site):
    def texts(**fields):
        answer = site.chat(n=4, max_tokens=24, temperature=1.5, ignore_eos=True, **fields)
        return [choice["message"]["content"] for choice in answer.json["choices"]]

    first = texts(seed=3)
    assert len(set(first)) == 4
    assert texts(seed=3) == first
    assert texts() != texts()
    assert texts(seed=-3) == texts(seed=-3) != first


@pytest.mark.parametrize("given", [{}, {"seed": 3}])
def test_answers_have_seeds_that_count_as_given_only_where_one_was(site, given, monkeypatch):
    submit, asked = site.engine.submit, []
    monkeypatch.setattr(
        site.engine, "submit", lambda *a, **k: asked.append(submit(*a, **k)) or asked[-1]
    )
    site.chat(n=3, temperature=1, **given)
    site.complete(prompt=["a", "b"], n=2, temperature=1, **given)
    requests = [handle.ticket.request for handle in asked]
    many = [derived_seed(3, index) for index in (0, 1, 2, 0, 1, 2, 3)]
    assert [one.params.seed for one in requests] == (many if given else [None] * 7)
    assert len({one.seed for one in requests}) == (4 if given else 7)


def test_streams_of_several_answers_come_mixed_and_whole(site):
    given = {"n": 3, "seed": 5, "max_tokens": 24, "temperature": 1, "ignore_eos": True}
    whole = [c["message"]["content"] for c in site.chat(**given).json["choices"]]
    texts = ["", "", ""]
    for event in site.chat(**given, stream=True).events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == whole


def test_stop_strings_and_length_are_told_apart(site, decoder):
    text = lone(decoder, max_new_tokens=24, ignore_eos=True).text
    stop = text[6:8]
    choice = site.chat(temperature=0, max_tokens=24, stop=stop).json["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert site.chat(temperature=0, max_tokens=3).json["choices"][0]["finish_reason"] == "length"
    assert (
        site.chat(temperature=0, max_completion_tokens=3, max_tokens=9).json["usage"][
            "completion_tokens"
        ]
        == 3
    )


def test_biases_and_penalties_change_what_is_said(site, decoder):
    free = lone(decoder, ignore_eos=True, max_new_tokens=16)
    banned = free.tokens[0]
    given = {"temperature": 0, "ignore_eos": True, "max_tokens": 16}
    biased = site.chat(**given, logit_bias={str(banned): -100}).json["choices"][0]
    assert decoder.target.tokenizer.decode([banned]) not in biased["message"]["content"]
    forced = site.chat(**given, logit_bias={"5": 100}).json["choices"][0]["message"]["content"]
    assert set(forced) == {decoder.target.tokenizer.decode([5])}
    # What a bias repeats endlessly gives way to the next where a penalty outweighs the difference.
    biases = {"5": 60, "6": 59.9}
    letters = decoder.target.tokenizer.decode([5]), decoder.target.tokenizer.decode([6])
    both = site.chat(**given, logit_bias=biases, frequency_penalty=2).json["choices"][0]
    assert all(letter in both["message"]["content"] for letter in letters)
    repeated = site.chat(**given, repetition_penalty=1.8).json["choices"][0]["message"]["content"]
    assert repeated != free.text


def test_pieces_say_who_drafted_them_if_that_is_asked(site, decoder):
    events = site.chat(temperature=0, max_tokens=24, stream=True, return_pieces=True).events
    pieces = [piece for e in events for c in e["choices"] for piece in c.get("pieces", ())]
    assert "".join(piece["text"] for piece in pieces) == lone(decoder, max_new_tokens=24).text
    assert {piece["drafted"] for piece in pieces} == {True, False}


def test_a_conversation_reaches_the_template_with_parts_joined(site, decoder):
    talk = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "refusal": None, "annotations": []},
        {"role": "user", "content": "d"},
    ]
    plain = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    answer = site.chat(messages=talk, temperature=0).json
    assert answer["choices"][0]["message"]["content"] == lone(decoder, plain).text


def test_models_health_and_metrics(site):
    (model,) = site.ask("GET", "/v1/models").json["data"]
    assert model["id"] == "tiny"
    assert model["owned_by"] == "eagle-decoding"
    assert site.ask("GET", "/v1/models/tiny").json == model
    assert site.ask("GET", "/v1/models/other").error["code"] == "model_not_found"
    assert site.ask("GET", "/health").json == {"status": "ok"}
    site.chat(max_tokens=24, ignore_eos=True)
    until(lambda: site.engine.stats().active == 0)
    text = site.ask("GET", "/metrics").content.decode()
    figures = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )
    assert float(figures["eagle_request_tau_count"]) >= 1
    assert float(figures["eagle_time_to_first_token_seconds_count"]) >= 1
    assert float(figures["eagle_time_per_token_seconds_sum"]) > 0
    assert float(figures["eagle_slots"]) == 4
    assert float(figures["eagle_tokens_total"]) >= 24
    assert float(figures['eagle_accepted_tokens_per_position_total{position="1"}']) >= 1
    path = 'path="/v1/chat/completions",status="200"'
    assert float(figures[f"eagle_http_requests_total{{{path}}}"]) >= 1


def test_whoever_is_refused_at_the_door_is_counted(site):
    refused = 'eagle_http_requests_total{path="other",status="403"} 1.0'
    assert site.ask("GET", "/v1/models", Host="evil.example").status == 403
    assert refused in site.ask("GET", "/metrics").content.decode()


def test_a_default_length_holds_for_chats_and_sixteen_for_completions(site):
    assert site.service.settings.default_tokens > 400
    long = site.ask(
        "POST", "/v1/chat/completions", {"messages": TALK, "ignore_eos": True, "temperature": 0}
    ).json
    assert long["usage"]["total_tokens"] == site.engine.decoder.capacity
    short = site.ask("POST", "/v1/completions", {"prompt": "hello", "ignore_eos": True}).json
    assert short["usage"]["completion_tokens"] == 16
