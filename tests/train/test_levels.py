"""Multi-step states and their loss, against drafting step by step with the cached head."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.cache.store import Step
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Committed, Drafted, Role
from eagle.testing import tiny_head, tiny_pair, tiny_target
from eagle.train.data.packing import visibility
from eagle.train.objective.levels import Levels, level_states, level_weights
from eagle.train.objective.losses import Loss
from eagle.train.spec.config import LossSpec
from eagle_plugins.losses import EagleLoss, EagleLossConfig


@pytest.fixture(scope="module")
def pair():
    target, folder = tiny_pair()
    registered = default_registry().get(Role.HEAD, "eagle").strategy
    head = registered.build(registered.config(weights=str(folder)), BuildContext(target.info))
    attention = default_registry().get(Role.ATTENTION, "sdpa").strategy
    head.load(target, attention.build(attention.config(), BuildContext()))
    return target, head


def drafted(head, tokens, features, entry, level):
    """Return the state of one entry of one level: absorb the true text, extend what is left."""
    known = entry - level + 1
    head.allocate(1, 64)
    step = Step.chain(torch.zeros(1, dtype=torch.int64), known, 32)
    state = head.absorb(
        Committed(
            tokens[:, :known],
            tokens.roll(1, 1)[:, :known],
            features[:, :known],
            torch.tensor([known]),
            step,
        )
    )[:, -1:]
    for drafts in range(level):
        row = torch.tensor([[known + drafts]])
        seen = torch.ones(1, 1, drafts + 1, dtype=torch.bool)
        step = Step(row, row, torch.tensor([known]), seen, 32)
        token = tokens[:, known + drafts : known + drafts + 1]
        state = head.extend(Drafted(token, state, drafts + 1, step))
    return state[0, 0]


@torch.no_grad()
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    levels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_levels_are_what_drafting_step_by_step_gives(pair, lengths, levels, seed):
    target, head = pair
    generator = torch.Generator().manual_seed(seed)
    size = sum(lengths)
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    tokens = torch.randint(64, (1, size), generator=generator)
    features = torch.randn(1, size, target.info.hidden_size, generator=generator)
    found = level_states(
        head.train_states,
        head.feed_back,
        tokens,
        tokens.roll(1, 1),
        features,
        positions,
        visibility(documents),
        levels,
    )
    weights = level_weights(torch.ones(size), positions, torch.arange(size), levels)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        for level in range(levels):
            counted = weights[level, part].tolist()
            assert counted == [float(entry >= level) for entry in range(length)]
            for entry in range(level, length):
                expected = drafted(head, tokens[:, part], features[:, part], entry, level)
                torch.testing.assert_close(
                    found[level][0, start + entry], expected, atol=1e-4, rtol=1e-4
                )
        start += length


def batch(target, length=12):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(64, (2, length), generator=generator)
    features = torch.randn(2, length, target.info.hidden_size, generator=generator)
    positions = torch.arange(length).expand(2, -1)
    return tokens, features.to(target.dtype), positions, visibility(torch.zeros_like(tokens))


def fed_levels(head, tokens, features, positions, visible):
    own = tokens.roll(1, 1)
    return Levels.fed(
        head.train_states, head.feed_back, tokens, own, features, positions, visible, 3
    )


def eagle_loss(target, draft_logits, levels=1, level_decay=1.0, **settings):
    spec = LossSpec(levels=levels, level_decay=level_decay)
    objective = EagleLoss(EagleLossConfig(**settings), BuildContext())
    return Loss(spec, objective, target.logits, draft_logits, lambda states: states)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_level_has_a_finite_gradient(dtype):
    target = tiny_target(dtype=dtype)
    head = tiny_head(target)
    tokens, features, positions, visible = batch(target)
    entries = torch.arange(4, 10)
    for level in range(3):
        head.module.zero_grad()
        half = torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32)
        with half:
            fed = fed_levels(head, tokens, features, positions, visible)
        with half, target.stock():
            states = fed.states(head.train_states)
            weights = torch.zeros(3, 6)
            weights[level] = 1
            loss = eagle_loss(target, head.logits, levels=3)
            loss(states, features, features, entries, weights, weights.sum(1)).total.backward()
        for name, parameter in head.module.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_no_gradient_flows_into_what_is_fed_back():
    target = tiny_target()
    head = tiny_head(target)
    tokens, features, positions, visible = batch(target)
    fed = fed_levels(head, tokens, features, positions, visible)
    assert not any(stream.requires_grad for stream in fed.streams)
    assert torch.equal(fed.streams[0], features)


def test_total_is_the_weighted_mean_over_levels():
    target = tiny_target()
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(1, 6, target.info.hidden_size, generator=generator) for _ in range(3)]
    true = torch.randn(1, 6, target.info.hidden_size, generator=generator)
    entries, weights = torch.arange(5), torch.tensor([[1.0] * 5, [0, *[1] * 4], [0, 0, *[1] * 3]])
    value = eagle_loss(target, target.logits, levels=3, level_decay=0.5)(
        states, true, true, entries, weights, weights.sum(1)
    )
    for level in range(3):
        alone = eagle_loss(target, target.logits)(
            states[level : level + 1],
            true,
            true,
            entries[level:],
            torch.ones(1, 5 - level),
            torch.tensor([5.0 - level]),
        )
        for name in ("feature", "token", "accuracy"):
            torch.testing.assert_close(getattr(value, name)[level], getattr(alone, name)[0])
    each = value.feature + 0.1 * value.token
    torch.testing.assert_close(value.total, (each * torch.tensor([4.0, 2.0, 1.0])).sum() / 7)


def test_top_k_is_the_cross_entropy_over_the_most_likely_tokens_alone():
    target = tiny_target()
    generator = torch.Generator().manual_seed(0)
    states, true = torch.randn(2, 1, 4, target.info.hidden_size, generator=generator)
    args = ([states], true, true, torch.arange(3), torch.ones(1, 3), torch.tensor([3.0]))
    plain = eagle_loss(target, target.logits)(*args).total
    with_top = eagle_loss(target, target.logits, top_k=4, top_k_weight=0.5)(*args).total
    expected = 0.0
    for entry in range(3):
        probs = target.logits(true[:, entry + 1 :][:, :1])[0, 0].softmax(-1)
        logs = target.logits(states[:, entry : entry + 1])[0, 0].log_softmax(-1)
        for token in probs.argsort(descending=True)[:4]:
            expected -= float(probs[token] * logs[token]) / 3
    torch.testing.assert_close(with_top - plain, torch.tensor(0.5 * expected))
