"""The ablation's heads: each sees what it should, decodes, trains, and is told from the others."""

import json

import pytest
import torch
from safetensors.torch import load_file

from eagle.decoding.decoder import Decoder
from eagle.errors import CheckpointError
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
from eagle.spec import DecoderSpec, resolve
from eagle.testing import check_draft_head, tiny_head, tiny_target, tiny_text
from eagle.train.data.corpus import Corpus
from eagle.train.data.template import Text
from eagle.train.evaluation.answers import Answer, replay_answers
from eagle.train.evaluation.replay import fixed_paths, tau
from eagle.train.features.features import Features
from eagle.train.objective.levels import level_states
from eagle.train.run.run import train
from eagle.train.spec.recipe import load_train_spec

KINDS = ["token", "feature", "feature-unshifted"]


@pytest.fixture(scope="module")
def target():
    return tiny_target()


def load(kind, target, folder):
    heads = default_registry().get(Role.HEAD, kind).strategy
    attention = default_registry().get(Role.ATTENTION, "sdpa").strategy
    head = heads.build(heads.config(weights=str(folder)), BuildContext(target.info))
    head.feature_size(target.info)
    head.load(target, attention.build(attention.config(), BuildContext()))
    return head


@pytest.fixture
def saved(target, tmp_path):
    def make(kind):
        tiny_head(target, name=kind, seed=1).save(tmp_path / kind)
        return tmp_path / kind

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_contract(kind, target, saved):
    check_draft_head(load(kind, target, saved(kind)), target)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_is_loaded(kind, target, saved):
    folder = saved(kind)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in load(kind, target, folder).module.state_dict().items():
        assert torch.equal(tensor, tensors[name].float())
    assert json.loads((folder / "config.json").read_text())["draft_kind"] == kind


@pytest.mark.parametrize("kind", ["eagle", *KINDS])
@pytest.mark.parametrize("other", ["eagle", *KINDS])
def test_a_checkpoint_of_another_kind_is_refused(kind, other, target, saved):
    if kind == other:
        assert load(kind, target, saved(kind)).feature_size(target.info) == 32
        return
    message = f"a draft head of the kind '{other}', not '{kind}'; use it with head.name={other}"
    with pytest.raises(CheckpointError, match=message):
        load(kind, target, saved(other))


def states(head, tokens, features):
    own = tokens.roll(1, dims=1)
    size = tokens.shape[1]
    visible = torch.ones(1, 1, size, size, dtype=torch.bool).tril()
    out = head.train_states(tokens, own, [features], torch.arange(size)[None], visible)
    return head.feed_back(out)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "of_token", "of_feature"),
    [
        ("token", 3, None),  # entry t is given the token after its own position
        ("feature", None, 3),
        ("feature-unshifted", 4, 3),
        ("eagle", 3, 3),
    ],
)
def test_the_first_entry_that_a_change_reaches(kind, of_token, of_feature, target):
    head = tiny_head(target, name=kind)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 64, (1, 6), generator=generator)
    features = torch.randn(1, 6, 32, generator=generator)
    before = states(head, tokens, features)

    def first(tokens, features):
        changed = (states(head, tokens, features) != before).any(-1)[0]
        return int(changed.int().argmax()) if changed.any() else None

    other = tokens.clone()
    other[0, 3] = (tokens[0, 3] + 1) % 64
    assert first(other, features) == of_token
    moved = features.clone()
    moved[0, 3] += 1
    assert first(tokens, moved) == of_feature


@torch.no_grad()
def test_a_packed_text_is_what_it_is_alone_from_its_first_token_on(target):
    head = tiny_head(target, name="feature-unshifted")
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(64, (1, 8), generator=generator)
    features = torch.randn(1, 8, 32, generator=generator)
    visible = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    visible[..., 4:, :4] = False
    positions = torch.arange(8)[None] % 4
    own = torch.randint(64, (1, 8), generator=generator)
    together = level_states(
        head.train_states, head.feed_back, tokens, own, features, positions, visible, 2
    )
    alone = level_states(
        head.train_states,
        head.feed_back,
        tokens[:, 4:],
        own[:, 4:],
        features[:, 4:],
        positions[:, 4:],
        visible[..., 4:, 4:],
        2,
    )
    torch.testing.assert_close(together[0][:, 4:], alone[0])
    other = own.clone()
    other[0, 4] = (own[0, 4] + 1) % 64
    changed = head.train_states(tokens, other, [features], positions, visible)
    assert (changed[0, 4] != together[0][0, 4]).any(), "the first token makes no difference"
    torch.testing.assert_close(together[1][:, 5:], alone[1][:, 1:])


RECIPE = """
data: {packed: text.npz, length: 32, heldout: 0}
loss: {levels: 2, token: 1}
optimizer: {lr: 1.0e-2}
noise: {uniform: 0}
steps: 60
batch: 4
log_every: 60
evaluation: {every: null, heldout: 0, trees: [{name: chain, depth: 3}]}
"""


@pytest.fixture(scope="module")
def trained(pair, tmp_path_factory):
    """Folders of heads of all kinds, after equally many steps on the same text."""
    folder = tmp_path_factory.mktemp("ablation")
    texts = tiny_text(40, 33, torch.Generator().manual_seed(1)).numpy()
    said = [Text(str(i), text, text >= 0) for i, text in enumerate(texts)]
    Corpus.of(said, 64, {"tokenizer": "none"}).save(folder / "text.npz")
    (folder / "run.yaml").write_text(RECIPE)
    runs = {
        kind: load_train_spec(folder / "run.yaml", [f"head={kind}", f"output={folder / kind}"])
        for kind in KINDS
    }
    return {kind: train(run, target=pair[0]).head for kind, run in runs.items()}


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_decodes_what_the_target_says_and_as_replay_foretells(kind, pair, trained):
    target, prompts = pair[0], [[4 + i, 6 + i, 8 + i, 10 + i] for i in range(6)]
    head = {"name": kind, "weights": str(trained[kind])}
    spec = DecoderSpec(head=head, tree={"name": "static", "branching": [3, 2, 1]})
    plain = DecoderSpec(head={"name": "none"}, tree={"name": "none"})
    wanted = Decoder.from_spec(plain, target=target).generate(prompts, max_new_tokens=24)
    found = Decoder.from_spec(spec, target=target).generate(prompts, max_new_tokens=24)
    assert [one.tokens for one in found] == [one.tokens for one in wanted]

    answers = [Answer(tuple(p), r.tokens) for p, r in zip(prompts, found, strict=True)]
    parts = resolve(spec, default_registry())
    parts.head.load(target, parts.attention)
    with target.stock():
        features = Features(target, parts.features)
        replays = replay_answers(answers, features, parts.head, 3, device=target.device)
    paths = fixed_paths(parts.tree, "tree")
    for result, replay in zip(found, replays, strict=True):
        assert tau([replay], paths) == pytest.approx(result.stats.tau)
    assert sum(result.stats.tau for result in found) > 2 * len(found)  # drafts are accepted
