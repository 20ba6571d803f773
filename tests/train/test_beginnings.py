"""What chat templates make of the beginnings of a conversation, found in one run and one by one."""

import random

import pytest

from eagle.errors import RequestError
from eagle.train.data import template as module
from eagle.train.data.template import Encoder
from tests.train.words import TEMPLATE, word_tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HEADERS = (  # the system's message is taken off first, and a name is set again
    "{{- bos_token }}{%- if tools is not none %}{{ tools }}{% endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content']|trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "<|system|>{{ system }}<|eot|>{%- for m in messages %}"
    "{%- if m.role not in ['user', 'assistant', 'system'] %}{{ raise_exception('no') }}{%- endif %}"
    "{%- set text = '<|' + m['role'] + '|>' + m['content'] | trim + '<|eot|>' %}{{- text }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)
STATE = (  # alternates, and counts in a namespace that what is behind the loop reads
    "{%- set ns = namespace(turn=0, open=false) %}{%- if messages[0].role == 'system' %}"
    "{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}"
    "{%- for message in rest %}{%- set ns.open = message.role == 'user' %}"
    "{%- if message.role == 'user' %}{%- set ns.turn = ns.turn + 1 %}[{{ ns.turn }}] {% endif %}"
    "{{ message.content }}{%- if message.role == 'assistant' %}</s>{%- endif %}{%- endfor %}"
    "{%- if ns.open and add_generation_prompt %} [/{{ ns.turn }}] {%- elif not ns.open %}\n"
    "{%- endif %}"
)
TOOLS = (  # looks ahead, but only from where a tool answers
    "{% for m in messages %}{% if m.role == 'tool' %}<tool>{{ m.content }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}</tool>{% endif %}"
    "{% else %}<{{ m.role }}>{{ m.content }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LAST = (  # what is behind the loop depends on the last message
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if messages[-1].role == 'assistant' %}<end>{% else %}<assistant>{% endif %}"
    "{{ messages | length }}"
)
BY_FLAG = (  # another beginning where an answer is asked for
    "{% if add_generation_prompt %}!{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% if add_generation_prompt %}.{% endif %}{% endfor %}{% if add_generation_prompt %}>"
    "{% endif %}"
)
MACRO = (
    "{% macro turn(m, at) %}{% if at == 1 %}(one){% endif %}<{{ m.role }}>{{ m.content }}<end>"
    "{% endmacro %}{% for m in messages %}{{ turn(m, loop.index) }}{% if loop.previtem and "
    "loop.previtem.role == m.role %}again{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KNOWN = {
    "words": TEMPLATE,
    "chatml": CHATML,
    "headers": HEADERS,
    "state": STATE,
    "tools": TOOLS,
    "last": LAST,
    "by flag": BY_FLAG,
    "macro": MACRO,
}
ASKED = "{% if add_generation_prompt %}<assistant>{% endif %}"


def loop(within="", behind=ASKED, over="messages"):
    """Return a template that goes through the messages once."""
    turn = "<{{ m.role }}>{{ m.content }}" + within
    return "{% for m in " + over + " %}" + turn + "{% endfor %}" + behind


UNKNOWN = {
    "thoughts of the last": loop("{% if loop.last %}(thought){% endif %}"),
    "the next": loop("{% if loop.nextitem is defined %},{% endif %}"),
    "how many": loop("{% if loop.index == messages | length %}.{% endif %}"),
    "the last": loop("{% if m == messages[-1] %}.{% endif %}"),
    "one on": loop("{% if messages[loop.index] %},{% endif %}"),
    "a test that swallows": loop("{% if messages is sequence %},{% endif %}"),
    "loop by name": loop("{{ loop['last'] }}"),
    "a loop within": loop("{% for n in messages %}{{ n.role }}{% endfor %}"),
    "backward before": "{% set ns = namespace(q=0) %}{% for m in messages[::-1] %}"
    "{% if m.role == 'user' and not ns.q %}{% set ns.q = loop.revindex0 %}{% endif %}{% endfor %}"
    + loop("{% if loop.index0 > ns.q %}.{% endif %}"),
    "two loops": loop("<end>") + "{% for m in messages %}{{ m.role }}{% endfor %}",
    "no loop": "{{ messages[0].content }}{{ messages[1].content }}",
    "a loop in a condition": "{% if true %}" + loop("<end>") + "{% endif %}",
    "some of them": loop(over="messages if m.role != 'x'"),
    "otherwise": loop("{% else %}none"),
    "backward": loop(over="messages | reverse"),
    "a state behind": "{% set ns = namespace(n=0) %}"
    + loop("{{ ns.n }}", "{% set ns.n = ns.n + 1 %}{{ ns.n }}" + ASKED),
    "a cycle": "{% set c = cycler('a', 'b') %}" + loop("", "{{ c.next() }}" + ASKED),
    "a generator": "{% set roles = messages | map(attribute='role') %}"
    + loop("", "{{ roles | first }}" + ASKED),
    "the loop's name behind": "{% set m = 5 %}" + loop("", "{{ m }}" + ASKED),
    "refuses the end": loop(
        "",
        "{% if messages[-1].role == 'user' and not add_generation_prompt %}"
        "{{ raise_exception('no') }}{% endif %}" + ASKED,
    ),
    "refuses two alike": loop(
        "{% if loop.previtem and loop.previtem.role == m.role %}{{ raise_exception('no') }}"
        "{% endif %}"
    ),
}


def talk(rng, turns=None):
    """Return a random conversation, mostly in order; contents may look like a template's text."""
    says = ["Hi", "Hello <end>", " a ", "", "<|im_end|>\n", "é\U0001f600", "</s>", "{{ x }}", "w9"]
    roles = ["user", "assistant"] * rng.randint(4, 9) if turns is None else ["user", "assistant"]
    roles = roles * (turns or 1)
    if rng.random() < 0.4:
        roles = ["system", *roles]
    if rng.random() < 0.3:
        roles[rng.randrange(len(roles))] = rng.choice(["tool", "user", "assistant", "system"])
    return tuple((role, rng.choice(says) * rng.randint(1, 2)) for role in roles)


def encoder_of(template):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return Encoder(tokenizer, [2], 1000)


def one_by_one(encoder, messages):
    """Return what `Encoder._spans` returns, from two renderings for each answer."""
    full = encoder._template(messages)
    told = [i for i, (role, text) in enumerate(messages) if role == "assistant" and text]
    spans = [encoder._span(messages, full, i) for i in told]
    return full, [span for span in spans if span is not None]


def outcome(find, *given):
    try:
        return find(*given)
    except RequestError as error:
        return str(error)


@pytest.mark.parametrize("template", (KNOWN | UNKNOWN).values(), ids=KNOWN | UNKNOWN)
def test_answers_lie_where_each_rendered_by_itself_says(template, monkeypatch):
    monkeypatch.setattr(module, "_MANY", 1)
    rng, encoder = random.Random(0), encoder_of(template)
    found = 0
    for _ in range(12):
        messages = talk(rng)
        said = outcome(encoder._spans, messages)
        assert said == outcome(one_by_one, encoder, messages)
        found += not isinstance(said, str)
    assert found


def rendered(monkeypatch, template, turns):
    """Return how often a template is rendered to find the answers of a conversation."""
    encoder, counted = encoder_of(template), []
    render = encoder._template
    monkeypatch.setattr(
        encoder, "_template", lambda *args, **given: counted.append(1) or render(*args, **given)
    )
    talk = (("user", "w5 w6"), ("assistant", "w7 w8")) * turns
    encoder._spans(talk)
    return len(counted)


@pytest.mark.parametrize("template", KNOWN.values(), ids=KNOWN)
def test_how_often_a_template_is_rendered_does_not_grow_with_the_answers(template, monkeypatch):
    few, many = (rendered(monkeypatch, template, turns) for turns in (20, 60))
    assert few == many < 20


def test_a_template_that_looks_ahead_is_rendered_for_each_answer(monkeypatch):
    assert rendered(monkeypatch, UNKNOWN["thoughts of the last"], 30) > 60
