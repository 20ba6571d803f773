"""Looking on: each cycle's tree, its accepted path, and plain decoding beside it."""

from __future__ import annotations

import pytest

TALK = [{"role": "user", "content": "hello"}]


def look(site, path="/eagle/trace", **fields):
    return site.ask("POST", path, {"messages": TALK, "max_tokens": 24, "temperature": 0} | fields)


def test_each_cycle_shows_its_tree_and_the_text_is_the_decoders(site, decoder):
    expected = decoder.generate("hello", max_new_tokens=24)
    start, *cycles, end = look(site).events
    assert start["type"] == "start"
    assert start["tree"]["name"] == "static"
    assert "".join(p["text"] for c in cycles for p in c["pieces"]) == expected.text
    assert {p["origin"] for c in cycles[1:] for p in c["pieces"]} == {"accepted", "bonus"}
    assert {p["origin"] for p in cycles[0]["pieces"]} <= {"first"}
    assert cycles[0]["trace"] is None
    for cycle in cycles[1:]:
        nodes = {node["index"]: node for node in cycle["trace"]["nodes"]}
        path = [node["token"] for node in nodes.values() if node["accepted"] and node["depth"]]
        assert [*path, cycle["trace"]["bonus"]["token"]][: len(cycle["tokens"])] == cycle["tokens"]
        assert len(nodes) == 16
        below = [node for node in nodes.values() if node["index"]]
        assert all(0 <= node["target_prob"] <= 1 for node in below)
        assert all(nodes[node["parent"]]["depth"] == node["depth"] - 1 for node in below)
    assert end["completion_tokens"] == 24
    assert end["cycles"] == len(cycles) - 1
    assert end["tau"] == pytest.approx(expected.stats.tau)


def test_plain_decoding_says_the_same_a_token_at_a_time(site, decoder):
    start, *cycles, end = look(site, "/eagle/plain").events
    assert start["tree"] == "none"
    expected = decoder.generate("hello", max_new_tokens=24)
    assert "".join(p["text"] for c in cycles for p in c["pieces"]) == expected.text
    assert all(len(cycle["tokens"]) == 1 and cycle["trace"] is None for cycle in cycles)
    assert end["tau"] == 1


def test_another_tree_or_rule_may_be_chosen(site):
    start, *cycles, _ = look(site, tree={"name": "chain", "depth": 2}).events
    assert start["tree"] == {"name": "chain", "depth": 2}
    assert all(len(cycle["trace"]["nodes"]) == 3 for cycle in cycles[1:])
    assert look(site, spec="chain").events[0]["tree"] == {"name": "chain", "depth": 3}
    lossy = look(site, acceptance="typical", tree={"name": "chain", "depth": 2}, temperature=1)
    assert lossy.events[0]["lossless"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"spec": "../eagle.yaml"}, "spec"),
        ({"tree": "nothing"}, "spec"),
        ({"tree": {"name": "static", "tree": "/etc/passwd"}}, "tree"),
        ({"tree": {"depth": 2}}, "tree"),
        ({"tree": {"name": "chain", "depth": 300}}, "spec"),
        ({"acceptance": {"name": "typical", "x": {"y": "a.b"}}}, "acceptance"),
        ({"colour": 1}, "colour"),
    ],
    ids=str,
)
def test_what_cannot_be_looked_at_is_refused(site, home, fields, param):
    answer = look(site, **fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert str(home) not in answer.content.decode()


def test_the_page_learns_what_it_may_choose(site, home):
    answer = site.ask("GET", "/eagle/info")
    assert answer.json["model"] == "tiny"
    assert answer.json["specs"]["chain"]["tree"] == {"name": "chain", "depth": 3}
    assert "dynamic" in answer.json["trees"]
    assert "speculative" in answer.json["acceptances"]
    assert str(home) not in answer.content.decode()


def test_the_root_says_what_there_is(site):
    answer = site.ask("GET", "/")
    assert answer.status == 200


def test_the_schema_has_every_body(site):
    schema = site.ask("GET", "/openapi.json").json
    body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]
    name = body["content"]["application/json"]["schema"]["$ref"].rsplit("/")[-1]
    assert "top_logprobs" in schema["components"]["schemas"][name]["properties"]
    assert schema["components"]["schemas"][name]["additionalProperties"] is False


def test_what_is_wrong_with_a_spec_is_said_of_the_request(site):
    """Neither the operator's command line nor a file of theirs is told."""
    answer = look(site, tree="offered")
    assert answer.status == 400
    message = answer.json["error"]["message"]
    assert message.startswith("the request: tree: ")
    assert "(eagle-decoding " in message
    assert "--set" not in message
