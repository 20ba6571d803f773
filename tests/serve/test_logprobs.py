"""Log probabilities in answers: the target's own, by text or by number, whole and streamed."""

from __future__ import annotations

import pytest
import torch

HOT = {"temperature": 1, "seed": 3, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def expected(decoder):
    """The tokens of an answer, and the target's log probabilities in each place."""

    def of(prompt, *, raw):
        result = decoder.generate(
            prompt, raw=raw, temperature=1, seed=3, max_new_tokens=12, ignore_eos=True
        )
        ids = torch.tensor([[*result.prompt_tokens, *result.tokens]])
        with torch.inference_mode(), decoder.target.stock() as model:
            logits = model(input_ids=ids, use_cache=False).logits[0]
        found = logits.float().log_softmax(-1)[len(result.prompt_tokens) - 1 : -1]
        return result.tokens, found

    return of


def test_a_chats_are_the_targets_own(site, decoder, expected):
    tokens, found = expected("hello", raw=False)
    answer = site.chat(**HOT, logprobs=True, top_logprobs=3).json["choices"][0]
    content = answer["logprobs"]["content"]
    decode = decoder.target.tokenizer.decode
    assert [one["token"] for one in content] == [decode([token]) for token in tokens]
    for one, token, own in zip(content, tokens, found, strict=True):
        assert one["logprob"] == pytest.approx(own[token].item(), abs=1e-4)
        assert bytes(one["bytes"]).decode() == one["token"]
        best = own.topk(3)
        assert [top["token"] for top in one["top_logprobs"]] == [decode([t]) for t in best.indices]
        given = [top["logprob"] for top in one["top_logprobs"]]
        assert given == pytest.approx(best.values.tolist(), abs=1e-4)
    assert site.chat(**HOT).json["choices"][0]["logprobs"] is None
    alone = site.chat(**HOT, logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert [one["top_logprobs"] for one in alone] == [[]] * 12


def test_a_completions_have_offsets_and_the_chosen_among_the_likeliest(site, decoder, expected):
    tokens, found = expected("hello", raw=True)
    told = site.complete(**HOT, logprobs=2, return_tokens_as_token_ids=True).json["choices"][0]
    told = told["logprobs"]
    assert told["tokens"] == [f"token_id:{token}" for token in tokens]
    own = [row[token].item() for row, token in zip(found, tokens, strict=True)]
    assert told["token_logprobs"] == pytest.approx(own, abs=1e-4)
    for name, top in zip(told["tokens"], told["top_logprobs"], strict=True):
        assert 2 <= len(top) <= 3
        assert name in top
    sizes = [len(decoder.target.tokenizer.decode([token])) for token in tokens]
    assert told["text_offset"] == [sum(sizes[:place]) for place in range(12)]


def test_streamed_pieces_have_those_of_their_tokens(site, expected):
    tokens, _ = expected("hello", raw=False)
    whole = site.chat(**HOT, logprobs=True, top_logprobs=1).json["choices"][0]["logprobs"]
    pieces = [
        choice["logprobs"]["content"]
        for event in site.chat(**HOT, logprobs=True, top_logprobs=1, stream=True).events
        for choice in event["choices"]
        if choice["logprobs"]
    ]
    assert len(pieces) > 1
    streamed = [one for piece in pieces for one in piece]
    assert [one["token"] for one in streamed] == [one["token"] for one in whole["content"]]
    offsets = [
        offset
        for event in site.complete(**HOT, logprobs=0, stream=True).events
        for choice in event["choices"]
        if choice["logprobs"]
        for offset in choice["logprobs"]["text_offset"]
    ]
    assert offsets == sorted(offsets)
    assert len(offsets) == len(tokens)


def test_token_ids_are_told_beside_the_text_if_that_is_asked(site, expected):
    tokens, _ = expected("hello", raw=True)
    assert site.complete(**HOT, return_token_ids=True).json["choices"][0]["token_ids"] == [*tokens]
    events = site.complete(**HOT, return_token_ids=True, stream=True).events
    told = [t for e in events for c in e["choices"] for t in c.get("token_ids", ())]
    assert told == [*tokens]
