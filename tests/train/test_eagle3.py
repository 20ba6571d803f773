"""An EAGLE-3 head from text to a decoder: its vocabulary, its levels, its loss, and resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file

from eagle import Decoder, DecoderSpec
from eagle.errors import IncompatibleError, SpecError
from eagle.plugin.budget import Budget, Costs
from eagle.plugin.capabilities import FittedTree
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
from eagle.plugin.training_loss import Prediction
from eagle.testing import check_draft_head, tiny_target, tiny_text
from eagle.train.data.corpus import Corpus
from eagle.train.data.packing import visibility
from eagle.train.data.template import Text
from eagle.train.evaluation.answers import Answer, replay_answers
from eagle.train.evaluation.rates import measure_rates
from eagle.train.evaluation.replay import fixed_paths, tau
from eagle.train.features.features import Features
from eagle.train.objective.levels import level_states, unrolled_states
from eagle.train.run import run as module
from eagle.train.run.run import train
from eagle.train.spec.config import LossSpec
from eagle.train.spec.recipe import load_train_spec
from eagle_plugins.losses import Eagle3Loss, Eagle3LossConfig
from tests.train.together import assert_same_run, run_two

BASE = """
data: {packed: text.npz, length: 32, heldout: 0}
features: layers
head: {name: eagle3, layers: [0, 1, 2], draft_vocab_size: 40}
loss: {name: eagle3, levels: 3, through: true}
noise: {uniform: 0}
optimizer: {lr: 1.0e-2}
batch: 4
steps: 6
log_every: 1
save_every: 3
tensorboard: false
evaluation: {every: null, heldout: 0, trees: [{name: chain, depth: 3}]}
"""


@pytest.fixture
def spec(tmp_path):
    texts = tiny_text(40, 33, torch.Generator().manual_seed(1)).numpy()
    said = [Text(str(i), text, text >= 0) for i, text in enumerate(texts)]
    Corpus.of(said, 64, {"tokenizer": "none"}).save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)

    def make(*overrides, output="out"):
        return load_train_spec(tmp_path / "run.yaml", [f"output={tmp_path / output}", *overrides])

    return make


def fresh(target, **settings):
    strategy = default_registry().get(Role.HEAD, "eagle3").strategy
    config = strategy.config(layers=(0, 1, 2), **settings)
    head = strategy.build(config, BuildContext(target.info, fresh=True))
    head.initialise(target, 0)
    return head


def lines(outcome):
    log = (outcome.head.parent / "log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in log]


def losses(outcome):
    return [line["loss"] for line in lines(outcome) if line["kind"] == "train"]


# --- levels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed_back", ["before-norm", "after-norm"])
def test_gradients_reach_through_what_is_fed_back(feed_back):
    target = tiny_target(dtype=torch.float64)
    head = fresh(target, feed_back=feed_back)
    head.module.double()
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(64, (2, 7), generator=generator)
    features = torch.randn(2, 6, 96, generator=generator, dtype=torch.float64)
    visible = visibility(torch.zeros_like(text[:, 1:]))
    given = (text[:, 1:], text[:, :-1], features, torch.arange(6).expand(2, -1), visible, 3)

    def value(kind):
        states = kind(head.train_states, head.feed_back, *given)
        return head.logits(states[2])[:, 2:].logsumexp(-1).sum()

    parameters = list(head.module.parameters())
    torch.testing.assert_close(value(unrolled_states), value(level_states))
    gradients = torch.autograd.grad(value(unrolled_states), parameters)
    stopped = torch.autograd.grad(value(level_states), parameters, allow_unused=True)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def along(found):
        pairs = zip(found, directions, strict=True)
        return float(sum((g * d).sum() for g, d in pairs if g is not None))

    step, ends = 1e-5, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += sign * step * direction
            ends.append(float(value(unrolled_states)))
    measured = (ends[0] - ends[1]) / (2 * step)
    assert along(gradients) == pytest.approx(measured, rel=1e-5)
    assert along(stopped) != pytest.approx(measured, rel=1e-2)


# --- the loss -------------------------------------------------------------------------------------


def test_the_loss_is_held_to_what_can_be_drafted():
    generator = torch.Generator().manual_seed(0)
    target, draft = (torch.randn(50, size, generator=generator) for size in (12, 4))
    own = torch.tensor([1, 5, 6, 11])
    loss = Eagle3Loss(Eagle3LossConfig(), BuildContext())
    found = loss(Prediction(0, draft, draft, draft, target, own))["loss"]
    probs = target.softmax(-1)[:, own]
    probs = probs / probs.sum(-1, keepdim=True)
    expected = -(probs * draft.log_softmax(-1)).sum(-1)
    best = target.argmax(-1)
    kept = torch.isin(best, own)
    assert 0 < kept.sum() < len(kept)
    torch.testing.assert_close(found[kept], expected[kept])
    assert (found[~kept] == 0).all()
    whole = loss(Prediction(0, draft, draft, target, target))["loss"]
    torch.testing.assert_close(whole, torch.distributions.Categorical(logits=target).entropy())


# --- a run ----------------------------------------------------------------------------------------


def test_the_draft_vocabulary_is_what_the_answers_say_most(spec, target, tmp_path):
    done = train(spec(), target=target)
    tensors = load_file(done.head / "model.safetensors")
    corpus = Corpus.load(tmp_path / "text.npz")
    counts = torch.bincount(torch.from_numpy(corpus.tokens.astype("int64")), minlength=64)
    own = torch.arange(40) + tensors["d2t"]
    assert torch.equal(own, counts.argsort(descending=True, stable=True)[:40].sort().values)
    assert tensors["t2d"].nonzero().flatten().tolist() == own.tolist()
    assert tensors["lm_head.weight"].shape == (40, 32)
    assert {name for name in tensors if name.startswith("midlayer.")}
    config = json.loads((done.head / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [0, 1, 2]
    assert config["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [-1, 0, 1]
    said = {k: config[k] for k in ("norm_before_residual", "norm_output", "fc_norm", "feed_back")}
    assert said == {
        "norm_before_residual": False,
        "norm_output": False,
        "fc_norm": False,
        "feed_back": "before-norm",
    }


@pytest.mark.parametrize("through", ["true", "false"])
def test_a_run_that_is_killed_is_resumed_to_the_bit(spec, target, monkeypatch, through):
    change = f"loss.through={through}"
    whole = train(spec(change, output="whole"), target=target)
    step = module.Trainer._step

    def killed(self, batch):
        if self.step == 4:
            raise SystemError("killed")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module.Trainer, "_step", killed)
        with pytest.raises(SystemError):
            train(spec(change), target=target)
    resumed = train(spec(change), target=target, resume=True)
    mine, theirs = (load_file(one.head / "model.safetensors") for one in (resumed, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert losses(resumed) == losses(whole)


def test_another_way_of_feeding_back_is_another_run(spec, target):
    train(spec("steps=3"), target=target)
    with pytest.raises(SpecError, match=r"another loss\.through"):
        train(spec("loss.through=false"), target=target, resume=True)
    with pytest.raises(SpecError, match=r"another head\.feed_back"):
        train(spec("head.feed_back=after-norm"), target=target, resume=True)


def test_two_processes_with_half_of_the_head_each_make_the_same_run(spec, target):
    averaged = "optimizer.ema=0.9"
    train(spec(averaged, output="one"), target=target)
    run_two(spec(averaged, "batch=2", "sharding=fsdp", output="two"))
    assert_same_run(spec(output="one"), spec(output="two"))


def test_layers_that_the_extractor_does_not_join_are_refused(spec, target):
    with pytest.raises(IncompatibleError, match=r"joins the hidden states 0, 1, 2 .*last alone"):
        train(spec("features=last-hidden"), target=target)
    with pytest.raises(SpecError, match="has no hidden state -1"):
        train(spec("head.layers=auto"), target=target)


def test_a_checkpoint_is_gone_on_from(spec, target):
    first = train(spec("head.fc_norm=each", "head.feed_back=after-norm"), target=target)
    again = ["start=checkpoint", f"head.weights={first.head}", "loss.name=eagle3"]
    second = train(spec(*again, output="second"), target=target)
    assert lines(second)[0]["loss"] < lines(first)[0]["loss"]
    tensors = load_file(second.head / "model.safetensors")
    assert {"fc_norm.0.weight", "fc_norm.2.weight", "d2t"} <= tensors.keys()


def test_a_shipped_recipe_has_the_layers_and_the_vocabulary_in_its_config():
    made = load_train_spec("eagle3")
    assert made.head.settings["draft_vocab_size"] == 32_000
    assert (made.loss, made.features.name) == (
        LossSpec(**made.loss.model_dump()),
        "layers",
    )
    assert (made.loss.name, made.loss.levels, made.loss.through) == ("eagle3", 3, True)


# --- used -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(pair, tmp_path_factory):
    """A head that was trained for a target which has something to say."""
    folder = tmp_path_factory.mktemp("trained")
    texts = tiny_text(200, 33, torch.Generator().manual_seed(1)).numpy()
    said = [Text(str(i), text, text >= 0) for i, text in enumerate(texts)]
    Corpus.of(said, 64, {"tokenizer": "none"}).save(folder / "text.npz")
    (folder / "run.yaml").write_text(BASE)
    changes = ["steps=150", "log_every=150", "batch=8", "head.draft_vocab_size=56"]
    made = load_train_spec(folder / "run.yaml", [f"output={folder / 'out'}", *changes])
    return pair[0], train(made, target=pair[0]).head


def test_replay_foretells_what_it_drafts(trained):
    target, folder = trained
    tree = {"name": "static", "branching": [3, 2, 1]}
    decoder = Decoder.from_spec(
        DecoderSpec(features="auto", head={"name": "auto", "weights": str(folder)}, tree=tree),
        target=target,
    )
    prompts = [[4 + i, 6 + i, 8 + i, 10 + i] for i in range(4)]
    found = decoder.generate(prompts, max_new_tokens=24, ignore_eos=True)
    plain = Decoder.from_spec(DecoderSpec(head="none", tree="none"), target=target)
    said = plain.generate(prompts, max_new_tokens=24, ignore_eos=True)
    assert [one.tokens for one in found] == [one.tokens for one in said]
    head, answers = decoder.resolved.head, []
    check_draft_head(head, target)
    for prompt, result in zip(prompts, found, strict=True):
        answers.append(Answer(tuple(prompt), result.tokens))
    with target.stock():
        features = Features(target, decoder.resolved.features)
        replays = replay_answers(answers, features, head, 3, device=target.device)
    paths = fixed_paths(decoder.resolved.tree, "static")
    for result, replay in zip(found, replays, strict=True):
        assert tau([replay], paths) == pytest.approx(result.stats.tau)
    assert sum(result.stats.tau for result in found) > 1.8 * len(found), "it learned nothing"


def test_its_ranks_choose_a_size_for_the_machine(trained):
    target, folder = trained
    made = DecoderSpec(
        features="layers",
        head={"name": "eagle3", "weights": str(folder)},
        tree={"name": "static", "size": "auto"},
    )
    resolved = Decoder.from_spec(made, target=target).resolved
    rates = measure_rates(
        resolved.head, target, resolved.features, [[4, 6, 8], [5, 8, 11]], "tiny", levels=4
    )
    assert 0.2 < sum(rates.levels[0]) <= 1.0
    assert rates.levels[0][0] > rates.levels[0][3]
    rates.write(folder)
    from eagle.decoding.resolving import resolve_for

    again = resolve_for(made, default_registry(), target)
    assert isinstance(again.tree, FittedTree)
    level = {"points": ((1, 0.1), (16, 0.2))}
    costs = Costs(verify={"points": ((1, 1.0), (64, 1.5))}, level=level, begin=0.1, rest=0.1,
                  context=64)  # fmt: skip
    fit = again.tree.fit(Budget(rates, costs))
    assert fit is not None
    assert fit.chosen.nodes > 1
