"""Compiled phases: what is compiled for some slots serves any number of them, and every tree."""

import re
from collections import Counter
from functools import partial

import pytest
import torch

from eagle import Decoder
from eagle.runtime.compiling import _reason, compiled_phases
from eagle.runtime.runtime import _by_layers
from eagle.spec import RuntimeSpec

PROMPTS = [[3, 5, 7], [2, 9], [11, 4, 8, 6], [1], [7, 7]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_piece_of_code_serves_any_number_of_slots(pair, spec, monkeypatch, temperature):
    # All slots are allocated at once, as on a GPU: a pass compiled ahead has them one by one.
    monkeypatch.setattr("eagle.runtime.runtime._AHEAD", ())
    torch._dynamo.reset()
    compiled = Counter()

    def backend(graph, inputs, *, code):
        compiled[code] += 1
        return graph.forward

    def counted(code, **options):
        return compiler(code, backend=partial(backend, code=code.__name__), **options)

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", counted)
    phases = None
    for number, branching in enumerate(([2, 1], [3, 1])):
        tree = {"name": "static", "branching": branching}
        decoder = Decoder.from_spec(spec(tree=tree, runtime={"max_batch": 5}), target=pair[0])
        assert len(decoder.target.layers) > 1
        phases = phases or compiled_phases(decoder._cycle)
        for count in (2, 3, 5):
            given = {"max_new_tokens": 6, "temperature": temperature, "seed": 3, "ignore_eos": True}
            decoder._cycle.compiled = {}
            expected = decoder.generate(PROMPTS[:count], **given)
            decoder._cycle.compiled = phases
            found = decoder.generate(PROMPTS[:count], **given)
            assert [one.tokens for one in found] == [one.tokens for one in expected]
        # A layer's code serves all layers and other trees too; what drafts and accepts follows the
        # tree. Of the target's pass nothing else is compiled.
        assert compiled["_layer"] == 1
        assert not compiled["verify"]
        assert max(compiled.values()) == number + 1


def test_one_layer_is_compiled_for_all_where_one_slot_is_decoded_too(pair, spec, monkeypatch):
    monkeypatch.setattr("eagle.runtime.runtime._AHEAD", ())
    torch._dynamo.reset()
    compiled = Counter()

    def backend(graph, inputs, *, code):
        compiled[code] += 1
        return graph.forward

    def counted(code, **options):
        return compiler(code, backend=partial(backend, code=code.__name__), **options)

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", counted)
    tree = {"name": "static", "branching": [2, 1]}
    given = {"max_new_tokens": 6, "ignore_eos": True}
    plain, whole, layers = (
        Decoder.from_spec(spec(tree=tree, runtime={"compile": how, "max_batch": 1}), target=pair[0])
        for how in (False, True, "layers")
    )
    expected = [plain.generate(prompt, **given).tokens for prompt in PROMPTS]
    assert [whole.generate(prompt, **given).tokens for prompt in PROMPTS] == expected
    assert compiled["verify"] == 1
    assert not compiled["_layer"]
    assert [layers.generate(prompt, **given).tokens for prompt in PROMPTS] == expected
    assert compiled["verify"] == 1  # not again
    assert len(layers.target.layers) > compiled["_layer"] == 1


def test_large_layers_are_compiled_one_for_all(pair, monkeypatch):
    size = sum(weight.nbytes for weight in pair[0].layers[0].parameters())
    for least, by_layers in ((size, True), (size + 1, False)):
        monkeypatch.setattr("eagle.runtime.runtime._HEAVY", least)
        assert _by_layers(RuntimeSpec(), pair[0]) is by_layers
        assert _by_layers(RuntimeSpec(compile="layers"), pair[0])
        assert not _by_layers(RuntimeSpec(compile=True), pair[0])


def test_a_failure_without_a_word_is_told_by_where_it_happened():
    def broken(graph, inputs):
        raise AssertionError

    def wordy(graph, inputs):
        raise ValueError("no such\nlayout")

    for backend, told in (
        (broken, r"AssertionError in \w+ of \w+\.py, line \d+"),
        (wordy, "no such layout"),
    ):
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.TorchDynamoException) as failed:
            torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
        assert re.fullmatch(told, _reason(failed.value))
