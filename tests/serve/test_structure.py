"""Answers in a form are always valid, and what is no form is refused in one sentence."""

from __future__ import annotations

import json
import re
import time

import pytest

from eagle import Decoder, Engine
from tests.serve.conftest import serving, until

# What JSON is written with, and some letters: 61 tokens beside the special ones.
CHARACTERS = ' abcdefghijklmnopqrstuvwxyz0123456789{}[]":,.-+_\\/()!?|#%&=*@'
HOT = {"temperature": 1, "max_tokens": 60}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yes"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def bytes_tokenizer():
    """Return a tokenizer whose tokens are bytes, as byte-level vocabularies write them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [character.replace(" ", "\u0120") for character in CHARACTERS]
    tokens = ["<pad>", "<bos>", "<eos>", *letters]
    assert len(tokens) == len(set(tokens)) == 64
    core = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
    )


@pytest.fixture(scope="module")
def site(pair, tmp_path_factory):
    target, head = pair
    folder = tmp_path_factory.mktemp("bytes") / "model"
    target.model.save_pretrained(folder)
    bytes_tokenizer().save_pretrained(folder)
    settings = [f"target.model={folder}", f"head.weights={head}", "target.dtype=float32"]
    decoder = Decoder.from_spec("chain", settings)
    with Engine(decoder) as engine, serving(engine) as made:
        yield made


def texts(answer):
    assert answer.status == 200, answer.content
    return [choice["message"]["content"] for choice in answer.json["choices"]]


@pytest.mark.parametrize(("spelt", "times"), [("response_format", 8), ("structured_outputs", 1)])
def test_all_of_many_answers_are_valid_by_a_schema(site, spelt, times):
    forms = {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        "structured_outputs": {"json": SCHEMA},
    }
    asked = HOT | {"n": 25, spelt: forms[spelt]}
    said = [text for _ in range(times) for text in texts(site.chat(**asked))]
    assert len(said) == 25 * times
    for text in said:
        found = json.loads(text)
        assert found.keys() == {"a", "b"}
        assert found["a"] in ("x", "yes")
        assert isinstance(found["b"], bool)


def test_a_json_object_is_one_unless_its_length_cuts_it(site):
    answer = site.chat(**HOT, n=4, response_format={"type": "json_object"}).json
    for choice in answer["choices"]:
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
        assert choice["message"]["content"].startswith("{")


def test_a_choice_is_one_of_those_that_were_given(site):
    for choices in (["yes", 'a "b" or c\\d'], ["no \\ way"]):
        found = texts(site.chat(**HOT, n=4, structured_outputs={"choice": choices}))
        assert set(found) <= set(choices)


def test_a_regular_expression_matches_the_whole_answer(site):
    for text in texts(site.chat(**HOT, n=4, structured_outputs={"regex": "[a-c]{3}[0-9]+"})):
        assert re.fullmatch("[a-c]{3}[0-9]*", text)


def test_a_completion_and_a_stream_follow_a_grammar(site):
    form = {"grammar": 'start: "a" (b | "c")\nb: "bb"'}
    assert site.complete(**HOT, structured_outputs=form).json["choices"][0]["text"] in ("abb", "ac")
    pieces = site.complete(**HOT, structured_outputs=form, stream=True).events
    assert "".join(e["choices"][0]["text"] for e in pieces) in ("abb", "ac")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"structured_outputs": {"regex": "("}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "start: nothing"}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": {"type": "nothing"}}}, "structured_outputs"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            "response_format",
        ),
    ],
    ids=str,
)
def test_a_form_that_is_none_is_refused(site, fields, param):
    answer = site.chat(**fields)
    assert (answer.status, answer.error["param"]) == (400, param)
    until(lambda: site.engine.stats().active == 0)


@pytest.mark.parametrize(
    "form",
    [
        {"json": {"type": "integer", "multipleOf": 999983}},
        {"grammar": 'start: %json {"multipleOf": 999983}'},
        {"grammar": "start: " + '"a" ' * 20_000},
    ],
    ids=["multiples", "multiples in a grammar", "long"],
)
def test_a_form_that_would_take_seconds_to_compile_is_refused(site, form):
    began = time.monotonic()
    answer = site.chat(structured_outputs=form)
    assert (answer.status, answer.error["param"]) == (400, "structured_outputs")
    assert time.monotonic() - began < 2


def test_half_of_a_surrogate_pair_in_a_schema_is_the_requests_fault(site):
    schema = {"name": "x", "schema": {"enum": ["\ud800"]}}
    answer = site.chat(response_format={"type": "json_schema", "json_schema": schema})
    assert (answer.status, answer.error["param"]) == (400, "response_format")
