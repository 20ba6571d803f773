"""Every family that transformers has: served as `generate` has it, or refused by name.

`docs/targets.md` has the outcome as a table; run this file as a module to write it anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from eagle import Decoder, DecoderSpec
from eagle.errors import TargetError
from eagle.target.causal_lm import Target
from tests.families import config_of, families, model_of

PAGE = Path(__file__).parents[2] / "docs" / "targets.md"
SPEC = DecoderSpec(head="none", tree="none")
SMALL = 3_000_000  # parameters
PROMPT = list(range(5, 25))
COUNT = 24  # past every window, which is of 24 positions
KINDS = {
    "AttentionInterface": "its attention cannot be exchanged",
    "layers of the kind": "recurrent, convolutional, chunked or indexed layers",
    "numbers a head": "keys and values of different sizes",
    "several shapes": "layers of different shapes",
    "a head_dim each": "layers of different shapes",
    "masks of their own": "masks of its own",
    "neither causal": "its mask is not causal by default",
    "keyword arguments": "its attention gets no arguments",
    "did not write": "layers that share keys and values",
    "rotary positions": "no attention layers",
    "encoder-decoder": "an encoder-decoder",
    "gives other logits": "logits that the probe does not find again",
    "cannot be run": "it does not run by itself",
}


def outcome(family):
    """Return a family's cells in the table; None where it cannot be built small."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        config = config_of(family)
        cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        with torch.device("meta"):
            model = cls(config)
        large = sum(p.numel() for p in model.parameters()) > SMALL
        if not large:
            model = model_of(config)
    except Exception:  # of whatever kind: the family needs settings of its own
        return None
    if large and getattr(model, "_supports_attention_backend", False):
        return None
    transformers.logging.set_verbosity_error()
    try:
        target = Target(model, None, family)
        decoder = Decoder.from_spec(SPEC, target=target)
    except TargetError as error:
        return "refused", next(
            (why for words, why in KINDS.items() if words in str(error)), str(error)
        )
    found = decoder.generate(PROMPT, max_new_tokens=COUNT, ignore_eos=True)
    with target.stock() as model:
        own = model.generate(
            torch.tensor([PROMPT]),
            max_new_tokens=COUNT,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    if found.tokens != tuple(own[0, len(PROMPT) :].tolist()):
        return "WRONG", ""
    return "served", ", ".join(sorted(target.asked.modifiers))


def tabled():
    """Return the table of the page, by family."""
    rows = re.findall(r"^\| `(.+?)` \| (\w+) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE)
    return {family: (what, how) for family, what, how in rows}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", sorted(tabled()))
def test_a_family_is_served_or_refused_as_the_table_says(family):
    if family not in families():
        pytest.skip("another version of transformers has it")
    assert outcome(family) == tabled()[family]


def test_the_table_has_most_families():
    what = [outcome for outcome, _ in tabled().values()]
    assert what.count("served") >= 70
    assert what.count("refused") >= 50
    assert "WRONG" not in what


if __name__ == "__main__":
    torch.set_num_threads(1)
    lines = []
    for name in families():
        cells = outcome(name)
        if cells is not None:
            lines.append(f"| `{name}` | {cells[0]} | {cells[1]} |")
    print("\n".join(lines))
