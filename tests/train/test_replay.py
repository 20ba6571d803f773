import itertools

import numpy as np
import pytest
import torch

from eagle.decoding.decoder import Decoder
from eagle.errors import SpecError
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Role
from eagle.spec import DecoderSpec, resolve
from eagle.testing import tiny_pair
from eagle.train.data.packing import visibility
from eagle.train.evaluation import grouping
from eagle.train.evaluation.answers import Answer, answer, replay_answers
from eagle.train.evaluation.replay import Replay, fixed_paths, n_alpha, tau
from eagle.train.features.features import Features
from eagle.train.objective.levels import level_mask, level_states


class LastHidden:
    capturable = True
    layers = ()

    def extract(self, last, hidden_states):
        return last


@pytest.fixture(scope="module")
def pair():
    target, folder = tiny_pair()
    registered = default_registry().get(Role.HEAD, "eagle").strategy
    head = registered.build(registered.config(weights=str(folder)), BuildContext(target.info))
    attention = default_registry().get(Role.ATTENTION, "sdpa").strategy
    head.load(target, attention.build(attention.config(), BuildContext()))
    return target, head


def build(name, **settings):
    strategy = default_registry().get(Role.TREE, name).strategy
    return strategy.build(strategy.config(**settings), BuildContext())


def closed(*paths):
    return {path[: i + 1] for path in paths for i in range(len(path))}


def naive_ranks(target, head, one, levels):
    """Draft each level by itself, as a decoder would: one text, one root at a time."""
    text = torch.tensor([one.prompt + one.answer])
    features = target.model.get_decoder()(input_ids=text, use_cache=False).last_hidden_state
    ranks = np.zeros((levels, len(one.answer)), dtype=np.int64)
    for i in range(len(one.answer) - 1):
        root = len(one.prompt) + i
        fed = features[:, :root]
        for level in range(min(levels, len(one.answer) - 1 - i)):
            size = fed.shape[1]
            states = head.train_states(
                text[:, 1 : size + 1],
                text[:, :size],
                [fed],
                torch.arange(size)[None],
                torch.ones(1, 1, size, size, dtype=torch.bool).tril(),
            )
            scores = head.logits(states[:, -1:])[0, 0]
            true = text[0, root + level + 1]
            ranks[level, i] = int((scores > scores[true]).sum())
            fed = torch.cat((fed, states[:, -1:]), dim=1)
    return ranks


@torch.no_grad()
def test_ranks_agree_with_drafting_root_by_root(pair):
    target, head = pair
    answers = []
    with target.stock():
        for start in (4, 20, 33):
            prompt = [start, start + 2, start + 4, start + 6]
            answers += answer(target, [prompt[: 2 + start % 3]], 12, 1)
        found = replay_answers(
            answers, Features(target, LastHidden()), head, 4, device=target.device, batch_tokens=40
        )
        for one, replay in zip(answers, found, strict=True):
            expected = naive_ranks(target, head, one, 4)
            for level in range(4):
                stop = len(one.answer) - 1 - level
                assert replay.ranks[level, :stop].tolist() == expected[level, :stop].tolist()


def conversation(turns=4):
    """Answers of one text, each behind a prompt that the text up to it begins."""
    answers, said = [], (5, 7, 9, 11)
    for turn in range(turns):
        prompt = (*said, 40 + turn, 41 + turn, 42 + turn)
        answers.append(Answer(prompt, tuple(range(12 + turn, 20 + turn))))
        said = prompt + answers[-1].answer
    return answers


@torch.no_grad()
@pytest.mark.parametrize("window", [1, 25, 512])
def test_ranks_behind_long_texts_and_in_conversations_agree_too(pair, monkeypatch, window):
    """Levels behind the first leave out what is not drafted from, whatever one pass looks at."""
    target, head = pair
    monkeypatch.setattr(grouping, "_WINDOW", window)
    answers = [*conversation(), Answer(tuple(range(3, 50)), (51, 52, 53, 54, 55, 7))]
    assert grouping.talks_of(answers) == [[0, 1, 2, 3], [4]]
    sizes = []
    states = head.train_states

    def counted(tokens, *given):
        sizes.append(tokens.shape[1])
        return states(tokens, *given)

    monkeypatch.setattr(head, "train_states", counted)
    with target.stock():
        found = replay_answers(
            answers, Features(target, LastHidden()), head, 3, device=target.device, batch_tokens=60
        )
        assert len(sizes) == 3 * {1: 5, 25: 3, 512: 2}[window]
        assert max(sizes) < 3 * 48, "a long prompt has one copy of its entries"
        for one, replay in zip(answers, found, strict=True):
            expected = naive_ranks(target, head, one, 3)
            for level in range(3):
                stop = len(one.answer) - 1 - level
                assert replay.ranks[level, :stop].tolist() == expected[level, :stop].tolist()


@torch.no_grad()
def test_batched_answers_are_those_of_single_prompts(pair):
    target, _ = pair
    prompts = [[5, 6, 7, 8, 9, 10], [20, 22], [40, 43, 46]]
    with target.stock():
        together = answer(target, prompts, 10, 3)
        alone = [answer(target, [prompt], 10, 1)[0] for prompt in prompts]
    assert together == alone
    assert [list(one.prompt) for one in together] == prompts


def test_level_mask_keeps_texts_apart(pair):
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    mask = level_mask(visibility(documents), 3)[0, 0]
    for (a, i), (b, j) in itertools.product(itertools.product(range(3), range(6)), repeat=2):
        same = documents[0, i] == documents[0, j]
        back = i - j
        expected = back >= a if b == 0 else b <= a and back == a - b
        assert bool(mask[a * 6 + i, b * 6 + j]) == bool(same and expected and back >= 0)


@torch.no_grad()
def test_levels_of_packed_texts_are_those_of_the_texts_alone(pair):
    target, head = pair
    text = torch.tensor([[5, 7, 9, 11, 13, 40, 41, 42, 43, 44]])
    documents = torch.tensor([[0] * 5 + [1] * 5])
    positions = torch.tensor([[*range(5), *range(5)]])
    features = torch.randn(1, 10, target.info.hidden_size)
    together = level_states(
        head.train_states,
        head.feed_back,
        text.roll(-1, 1),
        text,
        features,
        positions,
        visibility(documents),
        3,
    )
    for part in (slice(0, 5), slice(5, 10)):
        alone = level_states(
            head.train_states,
            head.feed_back,
            text.roll(-1, 1)[:, part],
            text[:, part],
            features[:, part],
            positions[:, part],
            visibility(documents[:, part]),
            3,
        )
        for level in range(3):
            inside = slice(level, None)
            torch.testing.assert_close(together[level][:, part][:, inside], alone[level][:, inside])


def test_tau_counts_the_bonus_token_and_stops_with_the_answer():
    ranks = np.array([[0, 1, 0, 0, 9, 9], [0, 0, 3, 0, 0, 9]])
    replay = Replay(ranks)
    paths = closed((0, 0))
    # Roots 0 (two accepted), 3 (two left, one accepted and its bonus token): 5 tokens, 2 cycles.
    assert replay.walk(paths) == [(0, 2), (3, 2)]
    assert tau([replay], paths) == 5 / 2
    assert tau([replay], closed()) == 1.0
    assert tau([replay], closed((0,), (1,))) == 5 / 3


def test_tau_of_no_answer_is_not_a_number():
    assert np.isnan(tau([Replay(np.zeros((2, 1), dtype=np.int64))], closed((0,))))


def test_n_alpha_is_conditional_and_leaves_out_what_the_answer_has_no_token_for():
    ranks = np.array([[0, 5, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    # Root 0 passes level 0 and fails level 1; root 2 passes both, and there is no third token.
    assert n_alpha([Replay(ranks)], 3)[:2] == [1.0, 0.5]
    assert np.isnan(n_alpha([Replay(ranks)], 3)[2])


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("chain", {"depth": 3}, closed((0, 0, 0))),
        ("static", {"branching": [2, 1]}, closed((0, 0), (1, 0))),
        ("static", {"tree": ((0,), (1,), (0, 0), (0, 1))}, closed((0, 0), (0, 1), (1,))),
        ("dynamic", {"nodes": 3, "depth": 3, "top_k": 1}, closed((0, 0, 0))),
    ],
)
def test_paths_of_fixed_trees_are_found_by_having_them_draft(name, settings, expected):
    assert fixed_paths(build(name, **settings), name) == expected


def test_the_reference_tree_has_its_25_candidates():
    paths = fixed_paths(build("static", tree="reference-25"), "static")
    assert len(paths) == 25
    assert {path[:-1] for path in paths} <= paths | {()}


def test_trees_that_look_at_the_draft_are_refused():
    class Moody:
        uniforms = 0
        shape = build("chain", depth=1).shape

        def build(self, drafter, draws):
            tree = build("chain", depth=1).build(drafter, draws)
            if drafter.begin()[0, 0, 1] < -1:  # a steep distribution: draft nothing
                tree.parents[:, 1] = -1
            return tree

    with pytest.raises(SpecError, match="takes its shape from the draft distributions"):
        fixed_paths(Moody(), "moody")


@pytest.mark.parametrize(
    "settings",
    [{}, {"nodes": 2, "depth": 2, "top_k": 2}, {"nodes": 5, "depth": 2, "top_k": 2}],
    ids=str,
)
def test_dynamic_trees_are_refused_even_where_little_can_differ(settings):
    with pytest.raises(SpecError, match="the tree 'dynamic' takes its shape from the draft"):
        fixed_paths(build("dynamic", **settings), "dynamic")


@torch.no_grad()
@pytest.mark.parametrize(
    "tree", [{"name": "chain", "depth": 4}, {"name": "static", "tree": "reference-25"}]
)
def test_replay_foretells_every_cycle_of_the_decoder(tree):
    target, folder = tiny_pair()
    spec = DecoderSpec(head={"name": "eagle", "weights": str(folder)}, tree=tree)
    prompts = [[4 + i, 6 + i, 8 + i, 10 + i] for i in range(6)]
    results = Decoder.from_spec(spec, target=target).generate(prompts, max_new_tokens=40)
    parts = resolve(spec, default_registry())
    parts.head.load(target, parts.attention)
    answers = [Answer(tuple(p), r.tokens) for p, r in zip(prompts, results, strict=True)]
    with target.stock():
        features = Features(target, parts.features)
        replays = replay_answers(answers, features, parts.head, 6, device=target.device)
    paths = fixed_paths(parts.tree, "tree")
    for result, replay in zip(results, replays, strict=True):
        left = len(result.tokens) - 1 - np.array([root for root, _ in replay.walk(paths)])
        walked = [accepted + 1 for _, accepted in replay.walk(paths)]
        assert np.minimum(walked, left).tolist() == list(result.stats.accepted_per_cycle)
        assert tau([replay], paths) == pytest.approx(result.stats.tau)
