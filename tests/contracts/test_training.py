"""A head that feeds its own output back, and a loss of one's own, in training and in replay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle import Decoder, DecoderSpec
from eagle.cache.store import Step
from eagle.errors import SpecError
from eagle.plugin.hooks import hookimpl
from eagle.plugin.registry import Registry
from eagle.plugin.roles import BuildContext, Committed, Drafted, Strategy, StrategyConfig
from eagle.testing import tiny_text
from eagle.train.data.corpus import Corpus
from eagle.train.data.packing import visibility
from eagle.train.data.template import Text
from eagle.train.evaluation.answers import Answer, replay_answers
from eagle.train.evaluation.replay import fixed_paths, tau
from eagle.train.features.features import Features
from eagle.train.objective.levels import level_states
from eagle.train.objective.losses import Loss
from eagle.train.run.run import train
from eagle.train.spec.config import LossSpec
from eagle.train.spec.recipe import load_train_spec
from eagle_plugins.features.layers import Layers, LayersConfig
from eagle_plugins.losses import EagleLoss, EagleLossConfig
from tests.contracts import toys


@pytest.fixture(scope="module")
def target(pair):
    return pair[0]


@pytest.fixture(scope="module")
def head(target):
    made = toys.OwnEnd(StrategyConfig(), BuildContext(target.info))
    made.load(target, None)
    return made


@torch.no_grad()
@settings(max_examples=8, deadline=None)
@given(size=st.integers(1, 7), levels=st.integers(1, 4), seed=st.integers(0, 99))
def test_levels_of_a_head_that_feeds_itself_back_are_what_it_drafts(
    target, head, size, levels, seed
):
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(64, (1, size + 1), generator=generator)
    tokens, own = text[:, 1:], text[:, :-1]
    features = torch.randn(1, size, 3 * target.info.hidden_size, generator=generator)
    positions = torch.arange(size)[None]
    found = level_states(
        head.train_states,
        head.feed_back,
        tokens,
        own,
        features,
        positions,
        visibility(torch.zeros_like(tokens)),
        levels,
    )
    for level in range(min(levels, size)):
        for entry in range(level, size):
            known = entry - level + 1
            step = Step.chain(torch.zeros(1, dtype=torch.int64), known, 16)
            parts = (tokens[:, :known], own[:, :known], features[:, :known])
            state = head.absorb(Committed(*parts, torch.tensor([known]), step))[:, -1:]
            for drafted in range(level):
                token = tokens[:, known + drafted : known + drafted + 1]
                state = head.extend(Drafted(token, state, drafted + 1, step))
            torch.testing.assert_close(found[level][:, entry], state[:, 0])


def spec_of(folder, *overrides):
    (folder / "run.yaml").write_text(
        """
data: {packed: text.npz, length: 32, heldout: 0}
features: layers
loss: {levels: 2}
optimizer: {lr: 1.0e-2}
noise: {uniform: 0}
steps: 40
batch: 4
log_every: 40
tensorboard: false
evaluation: {every: null, heldout: 0, trees: [{name: chain, depth: 3}]}
"""
    )
    texts = tiny_text(40, 33, torch.Generator().manual_seed(1)).numpy()
    said = [Text(str(i), text, text >= 0) for i, text in enumerate(texts)]
    Corpus.of(said, 64, {"tokenizer": "none"}).save(folder / "text.npz")
    layers = 'features={"name": "layers", "layers": [0, 1, 2]}'
    return load_train_spec(
        folder / "run.yaml", ["head=own-end", layers, f"output={folder / 'out'}", *overrides]
    )


class Trained(toys.OwnEnd):
    """The toy, with the weights that were trained."""

    folder = None

    def load(self, target, attention):
        super().load(target, attention)
        self.module.load_state_dict(torch.load(self.folder / "own-end.pt"))


class Margins:
    """A loss of its own: the true distribution's best token should lead by one."""

    compares_features = False

    def __init__(self, config, context):
        self.asked = set()

    def __call__(self, prediction):
        self.asked.add(prediction.level)
        wanted = prediction.target_logits[:, prediction.draft_vocab].argmax(-1, keepdim=True)
        drafts = prediction.draft_logits.masked_fill(prediction.draft_logits.isinf(), -1e4)
        behind = drafts - drafts.gather(-1, wanted) + 1
        return {"loss": behind.clamp(min=0).scatter(-1, wanted, 0.0).amax(-1)}


MARGINS = Strategy("margins", StrategyConfig, Margins, "a lead of one")


class Plugin:
    @hookimpl
    def eagle_training_losses(self):
        return [MARGINS]


@pytest.fixture(scope="module")
def registry() -> Registry:
    made = toys.registry()
    made.register(Plugin(), "margins", "margins", "1")
    return made


def test_a_head_of_its_own_learns_from_a_loss_of_its_own_and_replay_foretells_it(
    tmp_path, registry, target, monkeypatch
):
    spec = spec_of(tmp_path, "loss.name=margins")
    done = train(spec, registry=registry, target=target)
    assert done.finished
    monkeypatch.setattr(Trained, "folder", done.head)
    monkeypatch.setattr("tests.contracts.toys.OwnEnd", Trained)
    decoding = DecoderSpec(
        head="own-end", features="layers", tree={"name": "static", "branching": [2, 1]}
    )
    decoder = Decoder.from_spec(decoding, registry=toys.registry(), target=target)
    prompts = [[4 + i, 6 + i, 8 + i, 10 + i] for i in range(4)]
    found = decoder.generate(prompts, max_new_tokens=20, ignore_eos=True)
    head = decoder.resolved.head
    answers = [Answer(tuple(p), r.tokens) for p, r in zip(prompts, found, strict=True)]
    with target.stock():
        features = Features(target, Layers(LayersConfig(layers=(0, 1, 2)), BuildContext()))
        replays = replay_answers(answers, features, head, 2, device=target.device)
    paths = fixed_paths(decoder.resolved.tree, "static")
    for result, replay in zip(found, replays, strict=True):
        assert tau([replay], paths) == pytest.approx(result.stats.tau)
    assert sum(result.stats.tau for result in found) > 1.1 * len(found), "it learned nothing"


def test_the_regression_of_features_is_refused_for_what_is_none(tmp_path, registry, target):
    with pytest.raises(SpecError, match=r"feeds back has size 24, the features of 'layers' 192"):
        train(spec_of(tmp_path), registry=registry, target=target)


def test_an_unknown_loss_is_named_with_the_known_ones(tmp_path, registry, target):
    spec = spec_of(tmp_path, "loss.name=margin")
    with pytest.raises(
        SpecError, match=r"no training loss is named 'margin'.* Known: eagle, eagle3, marg"
    ):
        train(spec, registry=registry, target=target)


def test_a_setting_that_the_loss_does_not_have_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"loss\.levls: unknown key"):
        spec_of(tmp_path, "loss.levls=3")


def test_the_target_is_held_to_what_the_head_can_draft():
    generator = torch.Generator().manual_seed(0)
    end = torch.randn(20, 8, generator=generator)
    own = torch.tensor([7, 3, 11, 5])
    objective = EagleLoss(EagleLossConfig(feature=0, token=1), BuildContext())
    loss = Loss(
        LossSpec(),
        objective,
        lambda x: x @ end.T,
        lambda x: x @ end[own].T,
        lambda x: x,
        draft_vocab=own,
    )
    true = torch.randn(1, 6, 8, generator=generator)
    args = (true, true, torch.arange(5), torch.ones(1, 5), torch.tensor([5.0]))
    right = loss([true.roll(-1, 1)], *args)
    probs = (true[0, 1:] @ end[own].T).softmax(-1)
    torch.testing.assert_close(right.token[0], -(probs * probs.log()).sum(-1).mean())
    agree = own[probs.argmax(-1)] == (true[0, 1:] @ end.T).argmax(-1)
    torch.testing.assert_close(right.accuracy[0], agree.float().mean())
