"""EAGLE-3 heads as they are published: each layout computes what its description says."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file

from eagle import Decoder, DecoderSpec
from eagle.cache.store import Step
from eagle.cycle.cycle import Cycle
from eagle.errors import CheckpointError, IncompatibleError, SpecError
from eagle.plugin.entries import Committed, Drafted
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
from eagle.spec import load_spec, shipped_specs
from eagle.testing import check_draft_head, tiny_target
from eagle_plugins.heads import Eagle3Head, EagleHead
from tests.plugins.heads.published import VOCAB
from tests.plugins.heads.published3 import (
    CONFIG,
    DRAFTS,
    HT,
    IDS,
    LAYERS,
    LLAMA3,
    H,
    authors,
    ids,
    publish,
    reference,
    specforge,
    speculators,
    weights,
)


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def build(target, folder, name="auto", **settings):
    strategy = default_registry().get(Role.HEAD, name).strategy
    config = strategy.config(weights=str(folder), **settings)
    return strategy.build(config, BuildContext(target.info))


def head_tensors(folder):
    return load_file(folder / "model.safetensors")


def rounded(tensors):
    return {
        name: t.bfloat16().float() if t.is_floating_point() else t for name, t in tensors.items()
    }


def load(target, folder, name="auto", **settings):
    head = build(target, folder, name, **settings)
    head.feature_size(target.info)
    sdpa = default_registry().get(Role.ATTENTION, "sdpa").strategy
    head.load(target, sdpa.build(sdpa.config(), BuildContext()))
    return head


def check(target, folder, tensors, *, embedding=None, rope=None, settings=None, **variant):
    """Compare logits over a text and four drafted levels, with the cache and without."""
    head = load(target, folder, **(settings or {}))
    generator = torch.Generator().manual_seed(1)
    text, drafted = torch.randint(VOCAB, (2, 1, 9), generator=generator).unbind()
    drafted = drafted[:, :4]
    features = torch.randn(1, 9, 3 * HT, generator=generator)

    def embed(tokens):
        return target.embed(tokens) if embedding is None else embedding[tokens]

    expected = reference(
        tensors, embed(text)[0], features[0], embed(drafted)[0], rope=rope, **variant
    )
    for pieces in ([9], [4, 5]):
        head.allocate(1, 32)
        found, start = [], 0
        for count in pieces:
            part = slice(start, start + count)
            step = Step.chain(torch.tensor([start]), count, 16)
            entries = (text[:, part], text[:, part], features[:, part], torch.tensor([count]))
            states = head.absorb(Committed(*entries, step))
            found.append(head.logits(states))
            start += count
        state = states[:, -1:]
        for level in range(4):
            row = torch.tensor([[9 + level]])
            seen = torch.ones(1, 1, level + 1, dtype=torch.bool)
            step = Step(row, row, torch.tensor([9]), seen, 16)
            state = head.extend(Drafted(drafted[:, level : level + 1], state, level + 1, step))
            found.append(head.logits(state))
        torch.testing.assert_close(torch.cat(found, 1)[0], expected, atol=2e-4, rtol=1e-4)
    visible = torch.ones(9, 9, dtype=torch.bool).tril()[None, None]
    whole = head.train_states(text, text, [features], torch.arange(9)[None], visible)
    torch.testing.assert_close(head.logits(whole)[0], expected[:9], atol=2e-4, rtol=1e-4)
    return head


PUBLISHERS = {"authors": authors, "specforge": specforge, "speculators": speculators}
LINEAR = {"rope_type": "linear", "factor": 3.0}


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("norms", ["none", "joined", "each"])
@pytest.mark.parametrize("before", [False, True])
def test_every_publishers_head_computes_what_it_should(target, tmp_path, publisher, norms, before):
    tensors = weights(norms)
    said = {"norm_before_fc": norms == "joined", "fc_norm": norms == "each"}
    folder = PUBLISHERS[publisher](tmp_path, tensors, norm_before_residual=before, **IDS, **said)
    head = check(target, folder, tensors, before_residual=before)
    assert torch.equal(head.draft_vocab, ids())
    assert head.feature_layers(target.info) == tuple(LAYERS)


@pytest.mark.parametrize("norms", ["joined", "each"])
def test_norms_that_no_key_tells_of_are_told_by_their_tensors(target, tmp_path, norms):
    tensors = weights(norms)
    check(target, authors(tmp_path, tensors, **IDS), tensors)


@pytest.mark.parametrize(
    ("publisher", "said", "after"),
    [
        ("authors", {"norm_output": True}, True),
        ("authors", {"norm_output": False}, False),
        ("authors", {}, False),
        ("speculators", {"norm_output": True}, True),
        ("specforge", {"norm_output": True}, False),
        ("specforge", {"eagle_config": {"return_hidden_post_norm": True}}, True),
        ("specforge", {"feed_back": "after-norm"}, True),
    ],
)
def test_what_is_fed_back_is_what_the_publisher_means(target, tmp_path, publisher, said, after):
    tensors = weights("each")
    folder = PUBLISHERS[publisher](tmp_path, tensors, fc_norm=True, **IDS, **said)
    check(target, folder, tensors, after_norm=after)


def test_what_a_publisher_leaves_open_is_said_once_and_can_be_settled(target, tmp_path, caplog):
    tensors = weights()
    folder = speculators(tmp_path, tensors, **IDS)
    with caplog.at_level(logging.WARNING):
        check(target, folder, tensors)
    (said,) = [r.getMessage() for r in caplog.records]
    assert "no norm_before_residual, which speculators takes for false and vLLM for true" in said
    caplog.clear()
    check(target, folder, tensors, before_residual=True, settings={"norm_before_residual": True})
    assert not caplog.records
    folder = specforge(tmp_path, tensors, norm_output=True, **IDS)
    load(target, folder)
    assert "norm_output in config.json means to SpecForge" in caplog.records[-1].getMessage()
    caplog.clear()
    check(target, folder, tensors, after_norm=True, settings={"feed_back": "after-norm"})
    assert not caplog.records


@pytest.mark.parametrize("scaling", [LINEAR, LLAMA3], ids=["linear", "llama3"])
@pytest.mark.parametrize("publisher", ["authors", "speculators"])
def test_rotary_scaling_is_honoured(target, tmp_path, scaling, publisher):
    tensors = weights()
    said = {"rope_scaling": scaling}
    if publisher == "speculators":
        said = {"transformer_layer_config": said, "norm_before_residual": False}
    check(target, PUBLISHERS[publisher](tmp_path, tensors, **IDS, **said), tensors, rope=scaling)


def test_a_draft_vocabulary_that_is_the_whole_one_needs_no_map(target, tmp_path):
    tensors = weights(drafts=VOCAB)
    for size in (VOCAB, None):
        folder = authors(tmp_path, tensors, draft_vocab_size=size, **IDS)
        assert check(target, folder, tensors).draft_vocab is None


def test_a_head_without_an_lm_head_reads_the_targets(target, tmp_path):
    tensors = weights(drafts=VOCAB)
    del tensors["lm_head.weight"]
    theirs = target.logits(torch.eye(H)[None])[0].T  # what it computes is linear here
    head = check(
        target,
        authors(tmp_path / "a", tensors, draft_vocab_size=VOCAB, **IDS),
        tensors | {"lm_head.weight": theirs},
    )
    assert head.draft_vocab is None
    assert "through the target's LM head" in head.identity
    head.save(tmp_path / "b")
    assert not {"lm_head.weight", "d2t", "t2d"} & head_tensors(tmp_path / "b").keys()
    check(target, tmp_path / "b", rounded(tensors) | {"lm_head.weight": theirs})
    config = tmp_path / "b" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"draft_vocab_size": DRAFTS}))
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight"):
        load(target, tmp_path / "b")


def test_a_new_head_may_be_made_without_an_lm_head(target, tmp_path):
    strategy = default_registry().get(Role.HEAD, "eagle3").strategy
    settings = strategy.config(own_lm_head=False, layers=(0, 1, 2))
    head = strategy.build(settings, BuildContext(target.info, fresh=True))
    head.choose_vocabulary(torch.arange(VOCAB))
    head.initialise(target, 0)
    assert head.draft_vocab is None
    assert not any("lm_head" in n for n in head.module.state_dict())
    states = torch.randn(1, 3, H, requires_grad=True)
    head.logits(states).sum().backward()
    assert states.grad.abs().sum() > 0  # trained through the frozen LM head


def test_an_embedding_of_its_own_is_used_where_it_was_trained(target, tmp_path):
    tensors = weights(embed=True)
    said = {"norm_before_residual": False, "embed_requires_grad": True}
    folder = speculators(tmp_path, tensors, **IDS, **said)
    check(target, folder, tensors, embedding=tensors["embed_tokens.weight"])


def test_a_copy_of_the_targets_embedding_is_not_kept(target, tmp_path):
    own = target.embed(torch.arange(VOCAB)[None])[0].clone()
    folder = authors(tmp_path, weights() | {"embed_tokens.weight": own}, **IDS)
    assert check(target, folder, weights())._embedding is None


def test_a_head_of_another_hidden_size_brings_its_embedding(tmp_path):
    wide = tiny_target(hidden_size=48, num_attention_heads=4, head_dim=8)
    tensors = weights(embed=True, target=48)
    said = IDS | {"target_hidden_size": 48}
    head = load(wide, authors(tmp_path, tensors, **said))
    assert (head.feature_size(wide.info), head.state_size(wide.info)) == (144, H)
    check_draft_head(head, wide)
    whole = weights(embed=True, target=48, drafts=VOCAB)
    del whole["lm_head.weight"]  # the target's is for states of another size
    with pytest.raises(CheckpointError, match=r"missing lm_head\.weight"):
        load(wide, authors(tmp_path, whole, **said, draft_vocab_size=VOCAB))
    del tensors["embed_tokens.weight"]
    with pytest.raises(CheckpointError, match=r"needs an embed_tokens\.weight of its own"):
        load(wide, authors(tmp_path, tensors, **said))


def test_positions_go_on_behind_the_heads_limit_and_that_is_said(target, tmp_path, caplog):
    folder = authors(tmp_path, weights(), max_position_embeddings=6, **IDS)
    check(target, folder, weights())  # nine tokens and four drafts
    assert "was made for texts of up to 6 tokens, the target for" in caplog.text


def test_the_contract_of_a_head_is_kept(target, tmp_path):
    for norm_output in (False, True):
        folder = authors(tmp_path, weights(), norm_output=norm_output, **IDS)
        check_draft_head(load(target, folder), target)


@pytest.mark.parametrize("norm_output", [False, True])
def test_the_phases_of_a_cycle_are_whole_graphs(target, tmp_path, norm_output):
    folder = authors(tmp_path, weights(), norm_output=norm_output, **IDS)
    tree = {"name": "static", "branching": [2, 1]}
    decoder = Decoder.from_spec(spec(folder, tree=tree), target=target)
    for temperature in (0.0, 1.0):
        given = {"max_new_tokens": 6, "ignore_eos": True, "temperature": temperature, "seed": 1}
        expected = decoder.generate([3, 5, 7], **given).tokens
        decoder._cycle.compiled = {
            name: torch.compile(getattr(Cycle, name), backend="eager", fullgraph=True)
            for name in ("draft", "commit")
        }
        assert decoder.generate([3, 5, 7], **given).tokens == expected
        decoder._cycle.compiled = {}


# --- layers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "layers"),
    [
        ({}, (2, 15, 27)),
        (IDS, (0, 1, 2)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 14, 26]}}, (2, 15, 27)),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": None}}, (2, 15, 27)),
        (
            {
                "eagle_aux_hidden_state_layer_ids": [2, 15, 27],
                "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 14, 26]},
            },
            (2, 15, 27),
        ),
    ],
)
def test_layers_are_inputs_of_decoder_layers_whoever_counts_them(target, tmp_path, said, layers):
    deep = tiny_target(num_hidden_layers=30)
    assert build(deep, specforge(tmp_path, weights(), **said)).feature_layers(deep.info) == layers


def test_layers_of_two_countings_that_disagree_are_refused(target, tmp_path):
    said = IDS | {"eagle_config": IDS}
    with pytest.raises(CheckpointError, match=r"\[0, 1, 2\], outputs of layers.* be \[-1, 0, 1\]"):
        load(target, authors(tmp_path, weights(), **said))


def spec(folder, **parts):
    head = {"name": "auto", "weights": str(folder)}
    return DecoderSpec(**({"head": head, "tree": "chain", "features": "auto"} | parts))


@pytest.mark.parametrize("features", ["auto", "layers"])
def test_the_extractor_follows_the_head(target, tmp_path, features):
    made = spec(authors(tmp_path, weights(), **IDS), features=features)
    decoder = Decoder.from_spec(made, target=target)
    assert decoder.resolved.features.layers == tuple(LAYERS)
    assert isinstance(decoder.resolved.head, Eagle3Head)


@pytest.mark.parametrize(
    "name", [name for name in shipped_specs() if load_spec(name).head.name == "auto"]
)
def test_a_shipped_spec_takes_whatever_a_folder_holds(target, pair, tmp_path, name):
    folder = authors(tmp_path, weights(), **IDS)
    decoder = Decoder.from_spec(load_spec(name, [f"head.weights={folder}"]), target=target)
    assert isinstance(decoder.resolved.head, Eagle3Head)
    assert decoder.generate([3, 5, 7], max_new_tokens=4, ignore_eos=True).tokens
    decoder = Decoder.from_spec(load_spec(name, [f"head.weights={pair[1]}"]), target=pair[0])
    assert isinstance(decoder.resolved.head, EagleHead)
    assert decoder.resolved.features.layers == ()


@pytest.mark.parametrize(
    "features", ["last-hidden", {"name": "layers", "layers": [0, 1, 1]}], ids=str
)
def test_an_extractor_of_other_layers_is_refused(target, tmp_path, features):
    made = spec(authors(tmp_path, weights(), **IDS), features=features)
    with pytest.raises(IncompatibleError, match=r"joins the hidden states 0, 1, 2 .*but .* takes"):
        Decoder.from_spec(made, target=target)


@pytest.mark.parametrize("layers", [[0, 1], [0, 1, 2, 2]])
def test_another_number_of_layers_than_the_fc_joins_is_refused(target, tmp_path, layers):
    folder = authors(tmp_path, weights(), eagle_aux_hidden_state_layer_ids=layers)
    with pytest.raises(CheckpointError, match=rf"names {len(layers)} layers, but fc.weight joins"):
        load(target, folder)
    with pytest.raises(CheckpointError, match=rf"{len(layers)} layers are given, but .* joins 3"):
        load(target, authors(tmp_path, weights(), **IDS), layers=layers)


def test_a_layer_that_the_target_does_not_have_is_refused(target, tmp_path):
    folder = authors(tmp_path, weights(), eagle_aux_hidden_state_layer_ids=[0, 1, 7])
    with pytest.raises(SpecError, match="has no hidden state 7; it has 0 to 2"):
        Decoder.from_spec(spec(folder), target=target)


# --- what is told ---------------------------------------------------------------------------------


def test_the_folder_decides_between_the_heads(target, tmp_path):
    from eagle.testing import tiny_head

    tiny_head(target).save(tmp_path / "one")
    assert isinstance(build(target, tmp_path / "one"), EagleHead)
    with pytest.raises(CheckpointError, match=r"EAGLE-2, which is not read as .*head\.name=eagle,"):
        load(target, tmp_path / "one", "eagle3")
    with pytest.raises(SpecError, match=r"head\.feed_back: .* holds no head of EAGLE-3"):
        build(target, tmp_path / "one", feed_back="after-norm")
    folder = authors(tmp_path / "three", weights(), **IDS)
    with pytest.raises(CheckpointError, match=r"head of EAGLE-3, .*head\.name=eagle3"):
        load(target, folder, "eagle")


def test_what_a_head_is_can_be_asked_without_its_weights(target, tmp_path):
    said = build(target, speculators(tmp_path, weights("each"), fc_norm=True, **IDS)).identity
    assert said == (
        "a draft head of EAGLE-3 in the layout of speculators: hidden states 0, 1, 2 with a norm "
        "each in front of the FC, draft vocabulary 24 of 64, norm_before_residual false, fed back "
        "before-norm"
    )


def test_a_verifier_of_another_name_is_a_warning(target, tmp_path, caplog):
    said = {"norm_before_residual": False, **IDS}
    load(target, speculators(tmp_path, weights(), verifier="org/Tiny-Llama-GQA", **said))
    assert not caplog.records
    load(target, speculators(tmp_path, weights(), verifier="org/other", **said))
    (record,) = caplog.records
    assert "was made for the target 'org/other'" in record.getMessage()


# --- bad input ------------------------------------------------------------------------------------


def changed(**changes):
    tensors = weights() | changes
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


OFFSETS = ids() - torch.arange(DRAFTS)
MARKED = weights()["t2d"]
WRONG = {
    "beyond": (OFFSETS + 40, None, r"leads from draft id \d+ to \d+, which is not among 64"),
    "negative": (OFFSETS - 64, None, r"to -\d+, which is not among 64"),
    "not injective": (-torch.arange(DRAFTS), MARKED, "from several draft ids to the token 0"),
    "absolute": (ids(), MARKED, r"reads like target ids: it should hold offsets"),
    "absolute, alone": (ids(), None, "reads like target ids"),
    "absolute and small": (torch.arange(DRAFTS) * 2, None, "reads like target ids"),
    "absolute and no sign of it": (
        torch.arange(DRAFTS), None, "cannot be told from target ids without t2d"
    ),
    "another t2d": (OFFSETS, MARKED.roll(1), r"contradicts t2d in \d+ of 64 tokens"),
    "missing": (None, None, "drafts from 24 of 64 tokens, but has no d2t"),
    "t2d alone": (None, MARKED, "drafts from 24 of 64 tokens, but has no d2t"),
    "short": (OFFSETS[:-1], MARKED, r"d2t of the shape \[23\], not \[24\]"),
    "short t2d": (OFFSETS, MARKED[:-1], r"t2d of the shape \[63\], not \[64\]"),
    "no numbers": (OFFSETS.float(), MARKED, "d2t is of dtype float32; it should be int64"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_map_that_is_wrong_is_refused(target, tmp_path, name):
    d2t, t2d, message = WRONG[name]
    with pytest.raises(CheckpointError, match=message):
        load(target, authors(tmp_path, changed(d2t=d2t, t2d=t2d), **IDS))


def test_offsets_without_t2d_are_taken_where_they_cannot_be_anything_else(target, tmp_path):
    assert torch.equal(load(target, authors(tmp_path, changed(t2d=None), **IDS)).draft_vocab, ids())


@pytest.mark.parametrize("name", ["fc.weight", "midlayer.hidden_norm.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_found_in_any_tensor(target, tmp_path, name, value):
    tensors = weights()
    tensors[name].view(-1)[7] = value
    with pytest.raises(CheckpointError, match=f"is damaged: {name} holds NaN or infinity"):
        load(target, authors(tmp_path, tensors, **IDS))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"vocab_size": 65}, "vocab_size 65, the target 'tiny-llama-gqa' has 64"),
        ({"target_hidden_size": 16}, "names 3 layers, but fc.weight joins 6"),
        ({"target_hidden_size": 96}, "names 3 layers, but fc.weight joins 1"),
        ({"target_hidden_size": 5}, "a whole number of times 5 columns"),
        ({"target_hidden_size": "32"}, "target_hidden_size should be a positive number"),
        ({"draft_vocab_size": 25}, r"lm_head\.weight is \[24, 32\], not \[25, 32\]"),
        ({"num_hidden_layers": 2}, "heads of EAGLE-3 with one layer are read"),
        ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state is false"),
        ({"norm_before_fc": True}, r"missing input_norm\.weight"),
        ({"fc_norm": True, "norm_before_fc": True}, "exclude each other"),
        ({"norm_before_residual": 1}, "norm_before_residual should be true or false"),
        ({"norm_output": True, "eagle_config": {"norm_output": False}}, "norm_output should be"),
        ({"eagle_aux_hidden_state_layer_ids": "012"}, "should be a list of layers' numbers"),
        ({"feed_back": "both"}, "feed_back should be before-norm or after-norm"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "with the text's length"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(target, tmp_path, said, message):
    with pytest.raises(CheckpointError, match=message):
        load(target, authors(tmp_path, weights(), **{**IDS, **said}))


def test_a_norm_that_the_configuration_denies_is_unexpected(target, tmp_path):
    folder = authors(tmp_path, weights("joined"), norm_before_fc=False, **IDS)
    with pytest.raises(CheckpointError, match=r"unexpected input_norm\.weight"):
        load(target, folder)


def test_an_embedding_of_another_target_is_refused(target, tmp_path):
    with pytest.raises(CheckpointError, match=r"was trained for another target. If its embedding"):
        load(target, authors(tmp_path, weights(embed=True), **IDS))


def test_a_folder_of_speculators_for_another_method_is_named(target, tmp_path):
    config = CONFIG | {"speculators_model_type": "mtp"}
    with pytest.raises(CheckpointError, match=r"in the layout of speculators \('mtp'\), which"):
        load(target, publish(tmp_path, weights(), config))


# --- saved again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("norms", ["none", "joined", "each"])
def test_a_saved_head_is_the_same_and_leaves_nothing_open(
    target, tmp_path, publisher, norms, caplog
):
    said = {"norm_output": norms == "each", "norm_before_residual": norms == "joined"}
    first = load(target, PUBLISHERS[publisher](tmp_path / "a", weights(norms), **IDS, **said))
    first.save(tmp_path / "b")
    caplog.clear()
    again = load(target, tmp_path / "b")
    assert not caplog.records
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], tensor.bfloat16().float())
    assert torch.equal(again.draft_vocab, first.draft_vocab)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["norm_before_residual"] is said["norm_before_residual"]
    for key in ("norms", "norm_before_residual", "feed_back", "layers", "joined"):
        assert getattr(again._made, key) == getattr(first._made, key)
