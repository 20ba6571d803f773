"""A draft head that is a causal language model: loaded from a folder, right, refused in a word."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from eagle import Decoder, DecoderSpec, SamplingParams
from eagle.errors import CheckpointError
from eagle.plugin import CausalDrafter, Registry, Strategy, StrategyConfig, TargetInfo, hookimpl
from eagle.testing import assert_decoder_lossless, check_draft_head, tiny_target
from tests.docs.conftest import letters_tokenizer
from tests.exact.tiny import PROMPTS, _pair


class Config(StrategyConfig):
    model: str


class Plugin:
    @hookimpl
    def eagle_draft_heads(self):
        about = "a language model"
        made = Strategy(
            "causal", Config, lambda c, context: CausalDrafter(context.folder / c.model), about
        )
        return [made]


@pytest.fixture(scope="module")
def registry():
    made = Registry.discover()
    made.register(Plugin(), "causal", "causal")
    return made


@pytest.fixture
def decoder(registry, tmp_path):
    """Build a decoder that drafts with a model, which is saved first."""

    def make(target, model, **parts):
        model.model.save_pretrained(tmp_path / "draft")
        head = {"name": "causal", "model": str(tmp_path / "draft")}
        return Decoder.from_spec(DecoderSpec(head=head, **parts), registry=registry, target=target)

    return make


def answers(decoder, tokens=19, **params):
    prompts = [[3, 5, 7, 9, 11], [20, 22], [40]]
    return decoder.generate(prompts, max_new_tokens=tokens, ignore_eos=True, **params)


def plain(target, **params):
    made = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=target)
    return [one.tokens for one in answers(made, **params)]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_with_the_targets_own_files_every_draft_is_accepted(depth, decoder, pair):
    made = decoder(pair[0], pair[0], tree={"name": "chain", "depth": depth})
    found = answers(made, 1 + 6 * (depth + 1))
    assert [one.stats.tau for one in found] == [depth + 1] * 3
    assert [one.tokens for one in found] == plain(pair[0], tokens=1 + 6 * (depth + 1))


@pytest.mark.parametrize("tree", ["dynamic", "static"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_trees_of_a_smaller_model_of_another_architecture_decode(tree, temperature, decoder, pair):
    small = tiny_target("qwen3", num_hidden_layers=1, seed=3)
    made = decoder(pair[0], small, tree={"name": tree})
    found = answers(made, temperature=temperature, seed=0)
    assert all(len(one.tokens) == 19 for one in found)
    if not temperature:
        assert [one.tokens for one in found] == plain(pair[0])


def test_a_smaller_model_is_lossless(decoder):
    target = _pair(4, "cpu")[0]
    small = tiny_target("llama", vocab_size=4, hidden_size=8, num_key_value_heads=4, seed=5)
    tree = {"name": "static", "tree": [[0], [1], [1, 0]]}
    made = decoder(target, small, tree=tree, runtime={"max_batch": 64})
    params = SamplingParams(temperature=1.0)
    assert_decoder_lossless(made, PROMPTS, params, tokens=3, tolerance=1e-12)


@pytest.mark.parametrize("size", [48, 80])
def test_vocabularies_may_be_padded_to_other_sizes(size, decoder, pair):
    """What the draft model lacks is never proposed; what it has beyond is left out."""
    made = decoder(pair[0], tiny_target(vocab_size=size), tree={"name": "chain", "depth": 2})
    assert [one.tokens for one in answers(made)] == plain(pair[0])
    logits = made.resolved.head.logits(torch.randn(1, 2, 32))
    assert logits.shape == (1, 2, 64)
    assert logits.isfinite().sum(-1).tolist() == [[min(size, 64)] * 2]


def test_it_keeps_the_contract_of_a_head_and_sees_the_first_token(decoder, pair):
    made = decoder(pair[0], tiny_target(hidden_size=16, seed=2), tree={"name": "chain", "depth": 2})
    check_draft_head(made.resolved.head, pair[0], first_token=True)


def test_a_folder_without_a_model_is_named(registry, pair, tmp_path):
    head = {"name": "causal", "model": str(tmp_path / "nowhere")}
    with pytest.raises(CheckpointError, match=r"no draft model in .*nowhere: .* config\.json"):
        Decoder.from_spec(DecoderSpec(head=head), registry=registry, target=pair[0])


def test_a_configuration_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    info = TargetInfo("t", hidden_size=8, vocab_size=8, layers=1, max_positions=8)
    with pytest.raises(CheckpointError, match="configuration of the draft model"):
        CausalDrafter(tmp_path).state_size(info)


def test_a_model_with_sliding_windows_is_refused(decoder, pair):
    with pytest.raises(CheckpointError, match=r"sliding windows.* use one whose layers see"):
        decoder(pair[0], tiny_target("mistral-window"))


def test_a_model_whose_files_lack_weights_is_refused(decoder, pair, tmp_path):
    decoder(pair[0], tiny_target())
    (tmp_path / "draft" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="draft model is of no use"):
        CausalDrafter(tmp_path / "draft").load(pair[0], None)


def test_a_model_with_other_tokens_is_refused(decoder, pair, tmp_path, monkeypatch):
    """Its drafts would mean something else: nothing would be accepted, and nobody told why."""
    tokenizer = letters_tokenizer()
    monkeypatch.setattr(pair[0], "tokenizer", tokenizer)
    tokenizer.save_pretrained(tmp_path / "draft")
    decoder(pair[0], tiny_target())
    file = tmp_path / "draft" / "tokenizer.json"
    file.write_text(file.read_text().replace('"a": 4,', '"a": 5,').replace('"b": 5,', '"b": 4,'))
    assert AutoTokenizer.from_pretrained(tmp_path / "draft").get_vocab()["a"] == 5
    with pytest.raises(CheckpointError, match="2 of 64 differ, 4 is 'b' there and 'a' here"):
        decoder(pair[0], tiny_target())
