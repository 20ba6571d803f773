"""Medusa heads: the published layout, training, and the target's own words."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle import SamplingParams
from eagle.cache.store import Step
from eagle.errors import CheckpointError, IncompatibleError
from eagle.plugin.roles import BuildContext, TargetInfo
from eagle.testing import (
    assert_capturable,
    assert_decoder_lossless,
    check_draft_head,
    tiny_target,
)
from eagle.train.evaluation.rates import measure_rates
from eagle.train.run.run import train
from eagle_plugins.features.last_hidden import LastHidden, LastHiddenConfig
from tests.exact.tiny import PROMPTS, _pair
from tests.strategies.drafters import trial

H, VOCAB = 32, 64


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def weights(heads=3, blocks=1, size=H, vocab=VOCAB, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i in range(heads):
        for j in range(blocks):
            tensors[f"{i}.{j}.linear.weight"] = torch.randn(size, size, generator=generator) / 4
            tensors[f"{i}.{j}.linear.bias"] = torch.randn(size, generator=generator)
        tensors[f"{i}.{blocks}.weight"] = torch.randn(vocab, size, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def publish(folder, tensors, file="medusa_lm_head.pt", **config):
    said = {"medusa_num_layers": 1, "base_model_name_or_path": "tiny-llama-gqa"} | config
    (folder / "config.json").write_text(json.dumps(said))
    (torch.save if file.endswith(".pt") else save_file)(tensors, folder / file)
    return folder


def reference(tensors, feature, heads, blocks):
    """Return the logits of each head for one feature, by the paper's equation."""
    found = []
    for i in range(heads):
        x = feature
        for j in range(blocks):
            linear = tensors[f"{i}.{j}.linear.weight"] @ x + tensors[f"{i}.{j}.linear.bias"]
            x = x + linear * torch.sigmoid(linear)
        found.append(tensors[f"{i}.{blocks}.weight"] @ x)
    return torch.stack(found)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
def test_the_published_layout_computes_what_the_paper_says(target, tmp_path, file, blocks):
    tensors = weights(4, blocks)
    # As their own files: said to be of two heads, with four inside.
    folder = publish(tmp_path, tensors, file, medusa_num_heads=2, medusa_num_layers=blocks)
    head = trial.load("medusa", target, folder)
    features = torch.randn(2, H, generator=torch.Generator().manual_seed(1))
    found = head.draft(torch.tensor([1, 2]), features, Step.chain(torch.tensor([5, 7]), 4, 16))
    for slot in range(2):
        expected = reference(tensors, features[slot], 4, blocks)
        torch.testing.assert_close(found[slot], expected, atol=1e-4, rtol=1e-4)
    blocks_said = "one residual block" if blocks == 1 else "2 residual blocks"
    assert head.identity == f"4 Medusa heads of {blocks_said}, made for 'tiny-llama-gqa'"


def test_it_keeps_the_contract_and_can_be_captured(target, tmp_path):
    head = trial.load("medusa", target, publish(tmp_path, weights()))
    check_draft_head(head, target, first_token=False)
    trial.trains_what_it_drafts(head, target, 3)
    step = Step.chain(torch.tensor([5, 7]), 3, 16)
    assert_capturable(lambda: head.draft(torch.tensor([1, 2]), torch.zeros(2, H), step))


def test_its_drafts_never_change_what_is_said(target, tmp_path):
    head = {"name": "medusa", "weights": str(publish(tmp_path, weights()))}
    trees = [
        {"name": "chain", "depth": 3},
        {"name": "static", "branching": [3, 2, 2]},  # Medusa's Cartesian product
        {"name": "dynamic", "nodes": 8, "depth": 3, "top_k": 3},
    ]
    trial.says_what_the_target_says(target, head, trees)


@pytest.mark.parametrize("tree", [[[0], [0, 0]], [[0], [1], [1, 0]]], ids=["chain", "fork"])
def test_it_is_lossless_above_temperature_0(tree, tmp_path):
    target = _pair(4, "cpu")[0]
    tensors = weights(2, size=16, vocab=4)
    folder = publish(tmp_path, tensors, base_model_name_or_path=target.info.name)
    head = {"name": "medusa", "weights": str(folder)}
    decoder = trial.decoder(
        target, head=head, tree={"name": "static", "tree": tree}, runtime={"max_batch": 64}
    )
    assert_decoder_lossless(
        decoder, PROMPTS, SamplingParams(temperature=1.0), tokens=3, tolerance=1e-12
    )


def test_training_makes_heads_that_are_right_and_load_again(pair, tmp_path):
    target = pair[0]
    spec = trial.recipe(tmp_path, "head={name: medusa, heads: 3}")
    outcome = train(spec, target=target)
    (tau,) = outcome.measured.tau.values()
    assert tau["held-out"] > 1.3
    head = {"name": "medusa", "weights": str(outcome.best)}
    (found,) = trial.says_what_the_target_says(target, head, [{"name": "chain", "depth": 3}])
    assert found > 1.2


def test_fresh_heads_begin_as_the_targets_lm_head(target):
    head = trial.build("medusa", target, "nowhere", heads=2)
    head.initialise(target, 0)
    features = torch.randn(1, 3, H, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(head.logits(features), target.logits(features))


def test_blocks_alone_are_read_by_the_targets_lm_head(pair, tmp_path):
    target = pair[0]
    spec = trial.recipe(tmp_path, "head={name: medusa, heads: 3, own_lm_head: false}")
    outcome = train(spec, target=target)
    assert next(iter(outcome.measured.tau.values()))["held-out"] > 1.2
    stored = load_file(outcome.best / "medusa_lm_head.safetensors")
    size = target.info.hidden_size
    assert {tuple(tensor.shape) for tensor in stored.values()} == {(size, size), (size,)}
    assert len(stored) == 6
    head = trial.load("medusa", target, outcome.best)
    assert head.identity.startswith("3 Medusa heads of one residual block, read by the target's LM")
    features = torch.randn(2, size, generator=torch.Generator().manual_seed(1))
    found = head.draft(torch.tensor([1, 2]), features, Step.chain(torch.tensor([5, 7]), 3, 16))
    for level in range(3):
        weight, bias = (stored[f"{level}.0.linear.{part}"].float() for part in ("weight", "bias"))
        linear = features @ weight.T + bias
        expected = target.logits((features + linear * torch.sigmoid(linear))[:, None])[:, 0]
        torch.testing.assert_close(found[:, level], expected, atol=1e-4, rtol=1e-4)
    check_draft_head(head, target, first_token=False)
    trial.trains_what_it_drafts(head, target, 3)
    drafting = {"name": "medusa", "weights": str(outcome.best)}
    trial.says_what_the_target_says(target, drafting, [{"name": "chain", "depth": 3}])


def test_blocks_alone_are_said_to_be_so_and_made_for_one_vocabulary(target, tmp_path):
    tensors = {name: t for name, t in weights().items() if "linear" in name}
    folder = publish(tmp_path, tensors, vocab_size=VOCAB)
    with pytest.raises(CheckpointError, match="holds no Medusa heads"):
        trial.load("medusa", target, folder)
    publish(tmp_path, tensors, vocab_size=VOCAB + 1, own_lm_head=False)
    with pytest.raises(CheckpointError, match=r"vocabulary of 65, the target .* has 32 and 64"):
        trial.load("medusa", target, folder)


def test_a_tree_deeper_than_there_are_heads_is_refused(target, tmp_path):
    head = {"name": "medusa", "weights": str(publish(tmp_path, weights(2)))}
    with pytest.raises(IncompatibleError, match=r"'chain'.* is 3 levels deep, but .* drafts 2 at"):
        trial.decoder(target, head=head, tree={"name": "chain", "depth": 3})


def test_more_levels_than_heads_are_refused_before_training(pair, tmp_path):
    spec = trial.recipe(tmp_path, "head={name: medusa, heads: 2}")
    with pytest.raises(IncompatibleError, match="3 levels are to be drafted, but there are 2 Medu"):
        train(spec, target=pair[0])


def test_a_loss_of_features_is_refused(pair, tmp_path):
    spec = trial.recipe(tmp_path, "head={name: medusa, heads: 3}", "loss.name=eagle")
    with pytest.raises(IncompatibleError, match=r"predicts no features, which loss.name 'eagle'"):
        train(spec, target=pair[0])


BROKEN = {
    "another target": (weights(size=16), {}, "a hidden size of 16 and a vocabulary of 64"),
    "another vocabulary": (weights(vocab=60), {}, "a vocabulary of 60, the target"),
    "fewer than said": (weights(), {"medusa_num_heads": 5}, "medusa_num_heads is 5, but .* have 3"),
    "other blocks": (weights(), {"medusa_num_layers": 2}, "medusa_num_layers is 2, but .* have 1"),
    "no head": ({"x.weight": torch.zeros(2)}, {}, "holds no Medusa heads"),
    "one lacks": (
        {k: t for k, t in weights().items() if k != "1.0.linear.bias"},
        {},
        "missing 1.0.linear.bias",
    ),
    "one too many": (weights() | {"2.7.weight": torch.zeros(2)}, {}, "unexpected 2.7.weight"),
    "damaged": (weights() | {"1.1.weight": torch.full((VOCAB, H), torch.nan)}, {}, "holds NaN"),
    "Medusa-2": (
        {"model.layers.0.mlp.up_proj.weight": torch.zeros(2)},
        {},
        "a whole model with Medusa heads",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_does_not_fit_is_refused_in_a_sentence(case, target, tmp_path):
    tensors, config, message = BROKEN[case]
    with pytest.raises(CheckpointError, match=message):
        trial.load("medusa", target, publish(tmp_path, tensors, **config))


def test_heads_of_another_target_by_name_are_a_warning(target, tmp_path, caplog):
    folder = publish(tmp_path, weights(), base_model_name_or_path="lmsys/vicuna-7b-v1.3")
    trial.load("medusa", target, folder)
    assert "made for the target 'lmsys/vicuna-7b-v1.3', as its base_model_name" in caplog.text


def test_a_pickle_that_runs_code_is_not_loaded(target, tmp_path):
    class Trap:
        def __reduce__(self):
            return (print, ("run",))

    (tmp_path / "config.json").write_text("{}")
    torch.save({"0.0.linear.weight": Trap()}, tmp_path / "medusa_lm_head.pt")
    with pytest.raises(CheckpointError, match="holds more than tensors and was not loaded"):
        trial.load("medusa", target, tmp_path)


def test_without_weights_it_says_what_to_give():
    info = TargetInfo("t", H, VOCAB, 2, 64)
    target = type("T", (), {"info": info})
    with pytest.raises(CheckpointError, match="no Medusa heads are shipped"):
        trial.build("medusa", target, "auto").feature_size(info)


@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "model.safetensors"])
def test_head_auto_says_what_it_is_and_what_to_do(target, tmp_path, file):
    folder = publish(tmp_path, weights(), file, medusa_num_heads=3)
    with pytest.raises(CheckpointError, match=r"is a set of Medusa heads.*head.name=medusa"):
        trial.load("auto", target, folder)


def test_ranks_are_measured_and_trees_fitted_no_deeper_than_there_are_heads(target, tmp_path):
    folder = publish(tmp_path, weights(3))
    head = trial.load("medusa", target, folder)
    extractor = LastHidden(LastHiddenConfig(), BuildContext())
    rates = measure_rates(head, target, extractor, trial.PROMPTS, "a test", max_new_tokens=12)
    assert len(rates.levels) == 3
    rates.write(folder)
    fitted = trial.decoder(
        target,
        head={"name": "medusa", "weights": str(folder)},
        tree={"name": "static", "size": "auto"},
    )
    assert len(fitted.generate([1, 2, 3], max_new_tokens=8, ignore_eos=True).tokens) == 8
    assert fitted.resolved.tree.shape.depth <= 3
