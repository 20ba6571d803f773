"""What every drafter is tried with: decoders on tiny targets, and a short training run."""

from __future__ import annotations

import torch

from eagle import Decoder, DecoderSpec
from eagle.cache.store import Step
from eagle.plugin.registry import default_registry
from eagle.plugin.roles import BuildContext, Committed, Role
from eagle.testing import tiny_text
from eagle.train.data.corpus import Corpus
from eagle.train.data.packing import visibility
from eagle.train.data.template import Text
from eagle.train.spec.recipe import load_train_spec

PROMPTS = [[3, 5, 7, 9, 11], [20, 22], [40, 43, 46, 49, 52, 55, 58]]


def build(name, target, folder, **settings):
    strategy = default_registry().get(Role.HEAD, name).strategy
    config = strategy.config(weights=str(folder), **settings)
    return strategy.build(config, BuildContext(target.info))


def fresh(name, target, **settings):
    strategy = default_registry().get(Role.HEAD, name).strategy
    return strategy.build(strategy.config(**settings), BuildContext(target.info, fresh=True))


def load(name, target, folder, **settings):
    head = build(name, target, folder, **settings)
    head.feature_size(target.info)
    sdpa = default_registry().get(Role.ATTENTION, "sdpa").strategy
    head.load(target, sdpa.build(sdpa.config(), BuildContext()))
    return head


def decoder(target, **parts):
    return Decoder.from_spec(DecoderSpec(**({"features": "auto"} | parts)), target=target)


def says_what_the_target_says(target, head, trees, tokens=14):
    """Decode a batch, and each prompt alone, at temperature 0; return the decoders' tau."""
    plain = decoder(target, head="none", tree="none")
    wanted = [one.tokens for one in plain.generate(PROMPTS, max_new_tokens=tokens, ignore_eos=True)]
    taus = []
    for tree in trees:
        made = decoder(target, head=head, tree=tree)
        found = made.generate(PROMPTS, max_new_tokens=tokens, ignore_eos=True)
        assert [one.tokens for one in found] == wanted
        assert made.generate(PROMPTS[0], max_new_tokens=tokens, ignore_eos=True).tokens == wanted[0]
        taus.append(sum(one.stats.tau for one in found) / len(found))
    return taus


def absorbed(head, text, features, known):
    """Tell a head of a text up to its entry *known*, in two passes; return root and state."""
    head.allocate(text.shape[0], 64)
    state = None
    for start, end in ((0, known // 2), (known // 2, known)):
        if start == end:
            continue
        part = slice(start, end)
        step = Step.chain(torch.full((text.shape[0],), start), end - start, 64)
        count = torch.full((text.shape[0],), end - start)
        given = (text[:, 1:][:, part], text[:, :-1][:, part], features[:, part], count)
        state = head.absorb(Committed(*given, step))[:, -1]
    return text[:, known], state


@torch.no_grad()
def trains_what_it_drafts(head, target, levels, size=7, *, whole_blocks=False):
    """Every level of the training pass is what is drafted behind the same root.

    With *whole_blocks*, only where all of a block is inside of the text.
    """
    generator = torch.Generator().manual_seed(3)
    vocab = target.info.vocab_size
    text = torch.randint(vocab, (1, size + 1), generator=generator)
    features = torch.randn(1, size, head.feature_size(target.info), generator=generator)
    positions = torch.arange(size)[None]
    visible = visibility(torch.zeros(1, size, dtype=torch.int64))
    found = head.train_levels(text[:, 1:], text[:, :-1], features, positions, visible, levels)
    for known in range(1, size + 1):
        root, state = absorbed(head, text, features, known)
        step = Step.chain(torch.tensor([known]), levels, 64)
        drafted = head.draft(root, state, step)
        inside = min(levels, size - known + 1)
        for level in range(0 if whole_blocks and inside < levels else inside):
            entry = known - 1 + level
            trained = head.level_logits(found[level][:, entry : entry + 1], level)
            torch.testing.assert_close(trained[:, 0], drafted[:, level], atol=2e-4, rtol=1e-4)


def recipe(folder, *overrides, levels=3, steps=60):
    """Return a training spec on a small language that can be learned."""
    (folder / "run.yaml").write_text(
        f"""
data: {{packed: text.npz, length: 32, heldout: 0.1}}
features: auto
loss: {{name: eagle3, levels: {levels}}}
optimizer: {{lr: 1.0e-2}}
noise: {{uniform: 0}}
steps: {steps}
batch: 8
log_every: {steps}
tensorboard: false
evaluation:
  {{every: null, heldout: 4, max_new_tokens: 24, chain: {levels},
    trees: [{{name: chain, depth: {levels}}}]}}
"""
    )
    texts = tiny_text(80, 33, torch.Generator().manual_seed(1)).numpy()
    said = [Text(str(i), text, text >= 0) for i, text in enumerate(texts)]
    Corpus.of(said, 64, {"tokenizer": "none"}).save(folder / "text.npz")
    return load_train_spec(folder / "run.yaml", [f"output={folder / 'out'}", *overrides])
