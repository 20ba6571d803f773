"""Block drafters: published layouts compute what they should; training; the target's own words."""

from __future__ import annotations

import pytest
import torch

from eagle import SamplingParams
from eagle.cache.store import Step
from eagle.errors import CheckpointError, IncompatibleError, SpecError
from eagle.testing import (
    assert_capturable,
    assert_decoder_lossless,
    check_draft_head,
    tiny_target,
)
from eagle.train.run.run import train
from tests.exact.tiny import PROMPTS, _pair
from tests.strategies.drafters import trial
from tests.strategies.drafters.published_blocks import (
    MASK,
    SIZE,
    VOCAB,
    H,
    reference,
    speculators,
    weights,
    write,
    zlab,
)

FORMS = {
    "z-lab": {},
    "JetSpec": {"causal_head": True},
    "anchored": {"causal_head": True, "sample_from_anchor": True},
    "anchored-both-ways": {"sample_from_anchor": True},
}
KIND = {"z-lab": (False, False), "JetSpec": (True, False), "anchored": (True, True)}
KIND["anchored-both-ways"] = (False, True)


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def embedding(target):
    return target.embed(torch.arange(VOCAB)[None])[0]


def check(target, head, tensors, levels, *, lm_head=None, **form):
    """Compare drafts behind texts of several lengths in two slots with the reference."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(VOCAB, (2, 8), generator=generator)
    features = torch.randn(2, 7, 2 * H, generator=generator)
    table = embedding(target)
    for known in (1, 4, 7):
        root, state = trial.absorbed(head, text, features, known)
        found = head.draft(root, state, Step.chain(torch.tensor([known] * 2), levels, 64))
        for slot in range(2):
            states = reference(
                tensors, features[slot, :known], int(root[slot]), lambda t: table[t], levels, **form
            )
            expected = target.logits(states[None])[0] if lm_head is None else states @ lm_head.T
            torch.testing.assert_close(found[slot], expected, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("levels", [1, SIZE - 1])
@pytest.mark.parametrize("form", FORMS)
def test_the_layout_of_zlab_and_jetspec_computes_what_it_should(target, tmp_path, form, levels):
    tensors = weights()
    head = trial.load("parallel", target, zlab(tmp_path, tensors, **FORMS[form]))
    causal, anchored = KIND[form]
    check(target, head, tensors, levels, causal=causal, anchored=anchored)
    # The authors count layers whose outputs are taken: one more as transformers counts states.
    assert head.feature_layers(target.info) == (1, 2)


@pytest.mark.parametrize("anchored", [False, True])
def test_the_layout_of_speculators_computes_what_it_should(target, tmp_path, anchored):
    tensors = weights(vocab=24)
    folder = speculators(tmp_path, tensors, 24, embedding(target), sample_from_anchor=anchored)
    head = trial.load("parallel", target, folder)
    levels = SIZE if anchored else SIZE - 1
    lm_head = tensors["lm_head.weight"]
    check(target, head, tensors, levels, lm_head=lm_head, anchored=anchored)
    assert head.feature_layers(target.info) == (0, 1)
    assert head.draft_vocab.tolist() == list(range(1, 48, 2))
    sizes = "2 layers over hidden states 0, 1, blocks of"
    assert head.identity == (
        f"a block drafter in the layout of speculators: {sizes} {levels} levels seen both ways, an "
        "LM head of its own for 24 tokens"
    )


def test_layers_that_are_not_named_are_those_of_zlabs_code(tmp_path):
    deep = tiny_target(num_hidden_layers=9)
    top = {"num_target_layers": 9}
    head = trial.build("parallel", deep, zlab(tmp_path, weights(), top=top, target_layer_ids=None))
    assert head.feature_layers(deep.info) == (2, 7)  # 1 and 9 - 3, and one on


@pytest.mark.parametrize("form", FORMS)
def test_it_keeps_the_contract_and_can_be_captured(target, tmp_path, form):
    head = trial.load("parallel", target, zlab(tmp_path, weights(), **FORMS[form]))
    check_draft_head(head, target, first_token=False)
    step = Step.chain(torch.tensor([5, 7]), 3, 32)
    roots, states = torch.tensor([1, 2]), torch.zeros(2, 1)
    assert_capturable(lambda: head.draft(roots, states, step))


@pytest.mark.parametrize("form", FORMS)
def test_every_level_is_trained_as_it_is_drafted(target, tmp_path, form):
    head = trial.load("parallel", target, zlab(tmp_path, weights(), **FORMS[form]))
    causal = KIND[form][0]
    # Both ways, a block at the end of a text is cut off there in training.
    trial.trains_what_it_drafts(head, target, 3, whole_blocks=not causal)


@pytest.mark.parametrize("form", ["z-lab", "anchored"])
def test_its_drafts_never_change_what_is_said(target, tmp_path, form):
    head = {"name": "parallel", "weights": str(zlab(tmp_path, weights(), **FORMS[form]))}
    trees = [
        {"name": "chain", "depth": 4},
        {"name": "static", "branching": [3, 2, 1]},
        {"name": "dynamic", "nodes": 8, "depth": 3, "top_k": 3},
    ]
    trial.says_what_the_target_says(target, head, trees)


def test_a_draft_vocabulary_never_changes_what_is_said(target, tmp_path):
    folder = speculators(tmp_path, weights(vocab=24), 24, embedding(target))
    head = {"name": "parallel", "weights": str(folder)}
    trial.says_what_the_target_says(target, head, [{"name": "static", "branching": [3, 2, 1]}])


@pytest.mark.parametrize(
    ("causal", "tree"), [(True, [[0], [1], [1, 0]]), (False, [[0], [0, 0]])], ids=["fork", "chain"]
)
def test_it_is_lossless_above_temperature_0(causal, tree, tmp_path):
    target = _pair(4, "cpu")[0]
    head = trial.fresh("parallel", target, depth=1, block_size=3, causal=causal)
    head.initialise(target, 0)
    for parameter in head.module.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(8)  # so that drafts are of different likelihood
    head.save(tmp_path)
    decoder = trial.decoder(
        target,
        head={"name": "parallel", "weights": str(tmp_path)},
        tree={"name": "static", "tree": tree},
        runtime={"max_batch": 64},
    )
    assert_decoder_lossless(
        decoder, PROMPTS, SamplingParams(temperature=1.0), tokens=3, tolerance=1e-12
    )


def test_training_makes_a_drafter_that_is_right_and_loads_again(pair, tmp_path):
    target = pair[0]
    spec = trial.recipe(tmp_path, "head={name: parallel, depth: 1, block_size: 4}", steps=70)
    outcome = train(spec, target=target)
    (tau,) = outcome.measured.tau.values()
    assert tau["held-out"] > 1.15
    head = {"name": "parallel", "weights": str(outcome.best)}
    (found,) = trial.says_what_the_target_says(target, head, [{"name": "chain", "depth": 3}])
    assert found > 1


def test_what_the_norm_says_in_training_is_read_in_the_targets_dtype():
    target = tiny_target(dtype=torch.bfloat16)
    head = trial.fresh("parallel", target, depth=1)
    head.feature_size(target.info)
    head.initialise(target, 0)
    states = torch.randn(1, 2, H, generator=torch.Generator().manual_seed(1))
    found = head.level_logits(states, 0)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, target.logits(states.bfloat16()))


def test_a_block_longer_than_in_training_is_refused(target, pair, tmp_path):
    head = {"name": "parallel", "weights": str(zlab(tmp_path, weights()))}
    with pytest.raises(IncompatibleError, match=r"'chain'.* is 5 levels deep, but .* drafts 4 at"):
        trial.decoder(target, head=head, tree={"name": "chain", "depth": SIZE})
    spec = trial.recipe(tmp_path, "head={name: parallel, block_size: 3}")
    with pytest.raises(IncompatibleError, match=r"3 levels are to be drafted, but .* blocks of 2"):
        train(spec, target=pair[0])


def test_speculators_drafters_are_measured_and_not_trained_further(target, tmp_path):
    folder = speculators(tmp_path, weights(vocab=24), 24, embedding(target))
    head = trial.load("parallel", target, folder)
    trial.trains_what_it_drafts(head, target, 3, whole_blocks=True)
    nothing = torch.zeros(1, 3, dtype=torch.int64)
    seen = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    with pytest.raises(IncompatibleError, match="drafted with, and not trained further"):
        head.train_levels(nothing, nothing, torch.zeros(1, 3, 2 * H), nothing, seen, 2)


WITHOUT_NORM = {k: t for k, t in weights().items() if k != "layers.1.self_attn.q_norm.weight"}
BROKEN = {
    "another target": (weights(), {"top": {"num_target_layers": 36}}, "num_target_layers 36, the"),
    "another size": (weights(), {"top": {"hidden_size": 48}}, "hidden_size 48, the target"),
    "another vocabulary": (weights(), {"top": {"vocab_size": 90}}, "vocab_size 90, the target"),
    "a layer too deep": (weights(), {"target_layer_ids": [0, 2]}, "sees hidden state 3, and of"),
    "no mask": (weights(), {"mask_token_id": None}, "mask_token_id should be a whole number"),
    "a mask of another": (weights(), {"mask_token_id": 64}, "mask_token_id 64, which is not among"),
    "no block": (weights(), {"top": {"block_size": 1}}, "block_size is 1; a block has a root"),
    "a key not known": (weights(), {"gamma": 3}, "dflash_config has 'gamma', which is not known"),
    "windows": (
        weights(),
        {"top": {"layer_types": ["sliding_attention", "full_attention"]}},
        "a layer has 'sliding_attention'; drafters whose layers see the whole text are read",
    ),
    "other layers": (weights(3), {}, r"fc.weight is \[32, 96\], not \[32, 64\]"),
    "one lacks": (WITHOUT_NORM, {}, "missing layers.1.self_attn.q_norm.weight"),
    "one too many": (weights() | {"x": torch.zeros(2)}, {}, "unexpected x"),
    "DSpark": (
        weights() | {"markov_head.markov_w1.weight": torch.zeros(2)},
        {},
        "a DSpark draft model, whose Markov and confidence heads are not read",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused_in_a_sentence(case, target, tmp_path):
    tensors, changes, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=message):
        trial.load("parallel", target, zlab(tmp_path, tensors, **changes))


OTHERS = {
    "mtp": ({"speculators_model_type": "mtp"}, "a module of multi-token prediction"),
    "dspark": ({"speculators_model_type": "dspark"}, "a DSpark draft model"),
    "eagle3": ({"speculators_model_type": "eagle3"}, "use it with head.name=eagle3"),
    "neither": ({}, "is no block drafter: config.json has neither a dflash_config"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_method_is_refused_by_its_name(case, target, tmp_path):
    config, message = OTHERS[case]
    with pytest.raises(CheckpointError, match=message):
        trial.load("parallel", target, write(tmp_path, config, weights()))


def test_speculators_files_that_leave_something_open_are_refused(target, tmp_path):
    folder, table = tmp_path, embedding(target)
    tensors = weights(vocab=24)
    for said, message in (
        ({"aux_hidden_state_layer_ids": None}, "aux_hidden_state_layer_ids should be a list"),
        ({"aux_hidden_state_layer_ids": [0, 2]}, "sees hidden state 2, and of the target"),
        ({"mask_token_id": None}, "mask_token_id should be"),
        ({"draft_vocab_size": 30}, r"lm_head.weight is \[24, 32\], not \[30, 32\]"),
    ):
        with pytest.raises(CheckpointError, match=message):
            trial.load("parallel", target, speculators(folder, tensors, 24, table, **said))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight that is not that of the targ"):
        trial.load("parallel", target, speculators(folder, tensors, 24, table + 1))


def test_head_auto_says_what_it_is_and_what_to_do(target, tmp_path):
    with pytest.raises(CheckpointError, match=r"is a DFlash draft model.*head.name=parallel"):
        trial.load("auto", target, zlab(tmp_path, weights()))


def test_without_weights_it_says_what_to_give(target):
    with pytest.raises(CheckpointError, match="no parallel drafter is shipped"):
        trial.build("parallel", target, "auto").feature_size(target.info)


def test_layers_that_a_target_lacks_are_refused_before_training(pair, tmp_path):
    spec = trial.recipe(tmp_path, "head={name: parallel, layers: [1, 7]}")
    with pytest.raises(SpecError, match="has no hidden state 7"):
        train(spec, target=pair[0])


def test_what_is_saved_is_jetspecs_layout(target, tmp_path):
    settings = {"depth": 2, "causal": True, "sample_from_anchor": False, "mask_token_id": MASK}
    head = trial.fresh("parallel", target, **settings)
    head.initialise(target, 0)
    head.save(tmp_path)
    again = trial.load("parallel", target, tmp_path)
    assert again.identity == (
        "a block drafter in the layout of JetSpec: 2 layers over hidden states 1, 2, blocks of 7 "
        "levels causal"
    )
    assert set(weights()) == set(again.module.state_dict())
