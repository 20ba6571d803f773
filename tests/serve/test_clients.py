"""The `openai` package as its users call it: sync, async, streaming, and its errors."""

from __future__ import annotations

import asyncio

import openai
import pytest

TALK = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(site):
    with openai.OpenAI(base_url=site.url, api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def expected(decoder):
    return decoder.generate("hello", max_new_tokens=20)


def test_a_chat_and_its_usage(client, expected):
    answer = client.chat.completions.create(
        model="tiny", messages=TALK, temperature=0, max_tokens=20, seed=1, n=2, user="me"
    )
    assert [choice.message.content for choice in answer.choices] == [expected.text] * 2
    assert answer.usage.completion_tokens == 40
    assert answer._request_id.startswith("req-")
    # Fields that the package does not know come through it.
    assert answer.metrics["speculative_decoding"]["num_spec_steps"] == 2 * expected.stats.cycles


def test_a_stream_with_usage_at_its_end(client, expected):
    stream = client.chat.completions.create(
        model="tiny",
        messages=TALK,
        temperature=0,
        max_tokens=20,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == expected.text
    assert chunks[-1].usage.completion_tokens == 20


def test_the_packages_own_helper_for_streams(client, decoder):
    expected = decoder.generate("hello", max_new_tokens=20, stop=("g",))
    assert expected.finish_reason == "stop"
    with client.chat.completions.stream(
        model="tiny", messages=TALK, temperature=0, max_tokens=20, stop="g"
    ) as stream:
        seen = "".join(event.delta for event in stream if event.type == "content.delta")
        assert stream.get_final_completion().choices[0].message.content == seen == expected.text


def test_completions_models_and_extra_fields(client, decoder):
    expected = decoder.generate("hello", raw=True, max_new_tokens=20, ignore_eos=True)
    answer = client.completions.create(
        model="tiny",
        prompt="hello",
        temperature=0,
        max_tokens=20,
        extra_body={"ignore_eos": True, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.0},
    )
    assert answer.choices[0].text == expected.text
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_tasks_ask_and_stream_at_once(site, expected):
    async def one(client, stream):
        answer = await client.chat.completions.create(
            model="tiny", messages=TALK, temperature=0, max_tokens=20, stream=stream
        )
        if not stream:
            return answer.choices[0].message.content
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer])

    async def many():
        async with openai.AsyncOpenAI(base_url=site.url, api_key="none") as client:
            return await asyncio.gather(*(one(client, number % 2 == 0) for number in range(8)))

    assert asyncio.run(many()) == [expected.text] * 8


def test_errors_are_those_that_the_package_knows(client):
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=TALK, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=TALK)
    with pytest.raises(openai.BadRequestError, match="nothing_known"):
        client.chat.completions.create(model="tiny", messages=TALK, extra_body={"nothing_known": 1})
