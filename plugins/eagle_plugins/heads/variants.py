"""What exactly an EAGLE-3 head is: sizes, layers, norms, what is fed back; all of it explicit.

Publishers write the same head in several ways, and leave out what others take to mean different
things. Here each is read as its publisher means it, and what stays open is said. Knows
configurations and names of tensors, no weight. Sources: SafeAILab/EAGLE ``eagle/model/cnets.py``,
sgl-project/SpecForge ``specforge/modeling/draft``, sgl-project/sglang
``python/sglang/srt/models/llama_eagle3.py``, vllm-project/vllm
``vllm/transformers_utils/configs/speculators/algos.py``, vllm-project/speculators
``src/speculators/models/eagle3``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from eagle.plugin import (
    CheckpointError,
    FCNorms,
    Stored,
    TargetInfo,
    llama_config,
)
from eagle_plugins.heads.layouts import Layout

__all__ = ["FeedBack", "Variant", "low_middle_high", "read_variant"]

FeedBack = Literal["before-norm", "after-norm"]
"""Which of its own outputs a head is fed: before (EAGLE-3) or after (3.1) the last norm."""

_LAYER, _PLAIN_LAYER = "midlayer.", "layers.0."
_IDS = "eagle_aux_hidden_state_layer_ids"
_VERIFIERS = ("verifier_lm_head.weight", "verifier_norm.weight")


@dataclass(frozen=True)
class Variant:
    """An EAGLE-3 head, before any weight is read.

    Attributes:
        config: of its layer, a `transformers.LlamaConfig`.
        draft_vocab: Vd.
        own_lm_head: whether it has an LM head; else it reads the target's, as vLLM takes a head
            without one, and drafts from all of its tokens.
        target_size: Ht, the hidden size of the target.
        joined: how many of the target's hidden states its FC joins.
        layers: which ones, as indices of transformers' `hidden_states`; None: the low, middle and
            high one of the target.
        norms: in front of the FC.
        norm_before_residual: see `eagle_plugins.heads.midlayer.Eagle3Module`.
        feed_back: what it is fed.
        open: what its files leave open, and how it was taken: a sentence by the setting of the
            head that settles it.
    """

    config: Any
    draft_vocab: int
    own_lm_head: bool
    target_size: int
    joined: int = 3
    layers: tuple[int, ...] | None = None
    norms: FCNorms = "none"
    norm_before_residual: bool = False
    feed_back: FeedBack = "before-norm"
    open: Mapping[str, str] = field(default_factory=dict)

    def layers_of(self, target: TargetInfo) -> tuple[int, ...]:
        """Return the indices of the hidden states that it joins."""
        return self.layers or low_middle_high(target.layers)

    def __str__(self) -> str:
        layers = ", ".join(map(str, self.layers or ())) or "2, half and all but 3 of the layers"
        shared = "" if self.own_lm_head else " through the target's LM head"
        norms = {"none": "no norm", "joined": "one norm", "each": "a norm each"}[self.norms]
        return (
            f"hidden states {layers} with {norms} in front of the FC, draft vocabulary "
            f"{self.draft_vocab:,} of {self.config.vocab_size:,}{shared}, norm_before_residual "
            f"{str(self.norm_before_residual).lower()}, fed back {self.feed_back}"
        )


def low_middle_high(layers: int) -> tuple[int, ...]:
    """Return EAGLE-3's layers of a target: the inputs of its decoder layers 2, L // 2 and L - 3."""
    return (2, layers // 2, layers - 3)


def read_variant(layout: Layout) -> tuple[Variant, Layout]:
    """Return what a folder's head is, and the folder with tensors by the authors' names.

    Raises:
        CheckpointError: its files contradict themselves, or ask for what is not served.
    """
    path = layout.folder / "config.json"
    raw, publisher = layout.config, layout.publisher
    values = raw.get("transformer_layer_config") if publisher == "speculators" else raw
    if not isinstance(values, Mapping):
        raise CheckpointError(f"{path}: transformer_layer_config should be a mapping")
    nested = {} if raw.get("eagle_config") is None else raw["eagle_config"]
    if not isinstance(nested, Mapping):
        raise CheckpointError(f"{path}: eagle_config should be a mapping")
    keys = _Keys(path, raw, nested)
    tensors = _renamed(layout)
    biases = {name.replace(_LAYER, _PLAIN_LAYER) for name in tensors}
    config = llama_config(values, path, biases)
    if config.num_hidden_layers != 1:
        raise CheckpointError(
            f"{path}: num_hidden_layers is {config.num_hidden_layers}; heads of EAGLE-3 with one "
            "layer are read"
        )
    if keys.flag("use_aux_hidden_state") is False:
        raise CheckpointError(
            f"{path}: use_aux_hidden_state is false; a head of EAGLE-3 over the last hidden state "
            "alone is not read"
        )
    target_size = keys.count("target_hidden_size") or config.hidden_size
    fc = tensors.get("fc.weight")
    joined = fc.shape[1] // target_size if fc and len(fc.shape) == 2 else 0
    if not joined or fc is None or fc.shape[1] % target_size:
        shape = "missing" if fc is None else f"of the shape {list(fc.shape)}"
        raise CheckpointError(
            f"{layout.folder}: fc.weight is {shape}; it should have a whole number of times "
            f"{target_size} columns, the target's hidden size as config.json gives it"
        )
    layers = _layers(keys)
    if layers is not None and len(layers) != joined:
        raise CheckpointError(
            f"{path}: {_IDS} names {len(layers)} layers, but fc.weight joins {joined}"
        )
    if layers is None and joined != len(low_middle_high(1)):
        raise CheckpointError(
            f"{path}: fc.weight joins {joined} layers, and no {_IDS} says which; give them as "
            "head.layers"
        )
    head = tensors.get("lm_head.weight")
    draft_vocab = keys.count("draft_vocab_size") or (head.shape[0] if head else config.vocab_size)
    before, unsaid = _before_residual(keys, publisher)
    fed, meant = _feed_back(keys, publisher)
    open_ = {"norm_before_residual": unsaid, "feed_back": meant}
    return Variant(
        config=config,
        draft_vocab=draft_vocab,
        # The target's is of use for its own hidden size and vocabulary only.
        own_lm_head=head is not None
        or (draft_vocab, config.hidden_size) != (config.vocab_size, target_size),
        target_size=target_size,
        joined=joined,
        layers=layers,
        norms=_norms(keys, tensors),
        norm_before_residual=before,
        feed_back=fed,
        open={k: v for k, v in open_.items() if v},
    ), replace(layout, tensors=tensors)


def _renamed(layout: Layout) -> dict[str, Stored]:
    """Return tensors by the authors' names; ``layers.0.`` is speculators' for ``midlayer.``."""
    found: dict[str, Stored] = {}
    for name, one in layout.tensors.items():
        own = _LAYER + name.removeprefix(_PLAIN_LAYER) if name.startswith(_PLAIN_LAYER) else name
        if own in found:
            raise CheckpointError(f"{layout.folder} holds {own} twice, also as {_PLAIN_LAYER}")
        if own not in _VERIFIERS:
            found[own] = one
    return found


@dataclass(frozen=True)
class _Keys:
    """What a configuration says, at its top or under ``eagle_config``."""

    path: Any
    top: Mapping[str, Any]
    nested: Mapping[str, Any]

    def flag(self, name: str) -> bool | None:
        said = [v for v in (self.top.get(name), self.nested.get(name)) if v is not None]
        if not all(isinstance(value, bool) for value in said) or len(set(said)) > 1:
            raise CheckpointError(f"{self.path}: {name} should be true or false, and once")
        return bool(said[0]) if said else None

    def count(self, name: str) -> int | None:
        said = self.top.get(name)
        if said is not None and (type(said) is not int or not 1 <= said < 2**31):
            raise CheckpointError(f"{self.path}: {name} should be a positive number")
        return said

    def ids(self, where: Mapping[str, Any]) -> tuple[int, ...] | None:
        said = where.get(_IDS)
        if said is None:
            return None
        if not isinstance(said, list) or not said or any(type(one) is not int for one in said):
            raise CheckpointError(f"{self.path}: {_IDS} should be a list of layers' numbers")
        return tuple(said)


def _layers(keys: _Keys) -> tuple[int, ...] | None:
    """Return indices of `hidden_states`.

    At the top (vLLM, speculators) they are such indices. Under ``eagle_config`` (SGLang, SpecForge)
    they count layers whose *output* is taken, which is the hidden state one further.
    """
    top, nested = keys.ids(keys.top), keys.ids(keys.nested)
    moved = None if nested is None else tuple(layer + 1 for layer in nested)
    if top is not None and moved is not None and top != moved:
        raise CheckpointError(
            f"{keys.path}: {_IDS} are {list(top)}, inputs of layers, and those of eagle_config "
            f"{list(nested or ())}, outputs of layers, so they should be "
            f"{[layer - 1 for layer in top]}; correct it, or give head.layers"
        )
    return top or moved


def _norms(keys: _Keys, tensors: Mapping[str, Stored]) -> FCNorms:
    """Return the norms in front of the FC; where no key tells of one, its tensors do."""
    joined, each = keys.flag("norm_before_fc"), keys.flag("fc_norm")
    joined = "input_norm.weight" in tensors if joined is None else joined
    each = "fc_norm.0.weight" in tensors if each is None else each
    if joined and each:
        raise CheckpointError(f"{keys.path}: norm_before_fc and fc_norm exclude each other")
    return "joined" if joined else "each" if each else "none"


def _before_residual(keys: _Keys, publisher: str) -> tuple[bool, str | None]:
    said = keys.flag("norm_before_residual")
    if said is not None:
        return said, None
    if publisher != "speculators":  # the residual of the authors' layer is not normed
        return False, None
    return False, (
        "config.json has no norm_before_residual, which speculators takes for false and vLLM for "
        "true; taken for false. If drafts are hardly ever accepted, try "
        "head.norm_before_residual=true"
    )


def _feed_back(keys: _Keys, publisher: str) -> tuple[FeedBack, str | None]:
    own = keys.top.get("feed_back")
    if own in ("before-norm", "after-norm"):
        return own, None
    if own is not None:
        raise CheckpointError(f"{keys.path}: feed_back should be before-norm or after-norm")
    if keys.flag("return_hidden_post_norm"):
        return "after-norm", None
    if not keys.flag("norm_output"):
        return "before-norm", None
    if publisher != "specforge":
        return "after-norm", None
    return "before-norm", (
        "norm_output in config.json means to SpecForge that logits alone are made behind the norm, "
        "and to vLLM that this is fed back; taken as SpecForge means it. If drafts are hardly ever "
        "accepted, try head.feed_back=after-norm"
    )
