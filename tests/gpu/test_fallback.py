"""What cannot be captured or compiled runs all the same, and says so once."""

import logging
from dataclasses import replace

from eagle.decoding.decoder import Decoder

PROMPT = [3, 4, 5, 6, 7]


class Reading:
    """A rule that promises to read nothing on the host, and reads."""

    def __init__(self, rule):
        self._rule = rule

    def __getattr__(self, name):
        return getattr(self._rule, name)

    def accept(self, tree, target, shape, draws):
        assert tree.tokens.sum().item() >= 0
        return self._rule.accept(tree, target, shape, draws)


def test_a_component_that_breaks_its_promise_runs_eagerly(cuda_target, spec, caplog):
    decoder = Decoder.from_spec(spec(), target=cuda_target)
    expected = decoder.generate(PROMPT, max_new_tokens=20)
    rule = Reading(decoder.resolved.acceptance)
    broken = Decoder(replace(decoder.resolved, acceptance=rule), cuda_target)
    with caplog.at_level(logging.WARNING, logger="eagle.runtime"):
        first = broken.generate(PROMPT, max_new_tokens=20)
        second = broken.generate(PROMPT, max_new_tokens=20)
    assert first.tokens == second.tokens == expected.tokens
    captures = [r for r in caplog.records if "cannot be captured" in r.message]
    assert len(captures) == 1


def test_a_component_that_promises_nothing_is_not_captured(cuda_target, spec, monkeypatch, caplog):
    decoder = Decoder.from_spec(spec(runtime={"compile": False}), target=cuda_target)
    monkeypatch.setattr(type(decoder.resolved.tree), "capturable", False)
    with caplog.at_level(logging.WARNING, logger="eagle.runtime"):
        other = Decoder.from_spec(spec(runtime={"compile": False}), target=cuda_target)
        other.generate(PROMPT)
    (message,) = [r.message for r in caplog.records if "run eagerly" in r.message]
    assert "tree 'static', as set here, reads the device on the host" in message
    assert other.generate(PROMPT).tokens == decoder.generate(PROMPT).tokens
    assert not other._runtime.graph
    assert decoder._runtime.graph
