"""A chat template's text is transformers', or is refused before it costs anything."""

import time

import pytest

from eagle.errors import RequestError
from eagle.target import rehearsal
from eagle.target.templating import template_text, template_tokens
from tests.vocabularies import byte_level

MESSAGES = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' ~ message['role'] + '\n' + message.content | trim + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{{ shout | default('') }}{{ tools | tojson if tools }}"
)


def tokenizer(template):
    made = byte_level()
    made.chat_template = template
    return made


def test_the_text_and_tokens_are_those_of_transformers():
    made = tokenizer(CHATML)
    given = {"add_generation_prompt": True, "shout": "!", "tools": [{"type": "function"}]}
    text = made.apply_chat_template(MESSAGES, tokenize=False, **given)
    assert "<|im_start|>assistant\n!" in text
    assert template_text(made, MESSAGES, **given) == text
    expected = made.apply_chat_template(MESSAGES, tokenize=True, return_dict=False, **given)
    assert template_tokens(made, MESSAGES, **given) == expected


@pytest.mark.parametrize("change", ["nothing", "cut", "filled", "split", "own call"])
def test_tokens_are_those_of_the_tokenizers_own_call_whatever_it_is_set_to(change):
    made = tokenizer(CHATML)
    made.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "!"})
    if change == "cut":
        made.backend_tokenizer.enable_truncation(3)
    elif change == "filled":
        made.backend_tokenizer.enable_padding(length=100)
    elif change == "split":
        made.split_special_tokens = True
    elif change == "own call":
        made.__class__ = type(
            "Own", (type(made),), {"__call__": lambda *_, **__: {"input_ids": [7]}}
        )
    for messages in (MESSAGES * 500, MESSAGES):
        found = template_tokens(made, messages)
        expected = made(template_text(made, messages), add_special_tokens=False)["input_ids"]
        assert found == list(expected)
    assert (made.convert_tokens_to_ids("<|im_end|>") in found) == (
        change not in ("split", "own call")
    )


def test_long_messages_are_not_taken_for_the_templates_doing():
    long = [{"role": "user", "content": "word " * 100_000}] * 3
    made = tokenizer(CHATML + "{{ messages[0].content.replace('word', '[word]') }}")
    text = template_text(made, long)
    assert text == made.apply_chat_template(long, tokenize=False)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**8 }}",
        "{% set x = 'x' * 10**11 %}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% set x = namespace(s='x') %}{% for i in range(40) %}{% set x.s = x.s~x.s %}{% endfor %}",
        "{% set x = namespace(s='x') %}{% for i in range(40) %}{% set x.s = x.s+x.s %}{% endfor %}",
        "{{ 'x' | center(10**10) }}",
        "{{ 'x'.ljust(10**10) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ '{:9999999999}'.format(1) }}",
        "{{ ('x' * 10**5).replace('x', 'x' * 10**5) }}",
        "{{ ('x' * 10**5) | replace('x', 'x' * 10**5) }}",
        "{{ (['x' * 10**5] * 10**5) | join }}",
        "{{ [0] * 10**10 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n else 'x' * 99 }}{% endmacro %}{{ f(40) }}",
    ],
)
def test_a_template_that_makes_too_much_is_refused_at_once(template):
    started = time.perf_counter()
    with pytest.raises(RequestError, match=r"the chat template (makes|takes).*so it is not used"):
        template_text(tokenizer(template), MESSAGES)
    assert time.perf_counter() - started < 15


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_a_template_that_does_not_end_is_refused(template, monkeypatch):
    monkeypatch.setattr(rehearsal, "_SECONDS", 0.3)
    with pytest.raises(RequestError, match=r"takes longer than 0\.3 seconds, so it is not used"):
        template_text(tokenizer(template), MESSAGES)


@pytest.mark.parametrize("template", ["{{ raise_exception('no system role') }}", "{% if %}"])
def test_what_a_template_refuses_is_told_in_one_line(template):
    with pytest.raises(RequestError, match="refuses these messages: ") as caught:
        template_text(tokenizer(template), MESSAGES)
    assert "\n" not in str(caught.value)


def test_half_of_a_surrogate_pair_in_anything_that_a_template_reads_is_refused():
    made = tokenizer(CHATML)
    with pytest.raises(RequestError, match=r"UTF-8 can hold: it has '\\ud800'"):
        template_tokens(made, MESSAGES, shout="\ud800")
