"""From a training spec to its text: tokenised now, or read from the file that was made before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from eagle.errors import DataError
from eagle.target import Target, loading
from eagle.train.data.corpus import Corpus, tokenizer_digest
from eagle.train.data.sources import read_sources, sources_digest
from eagle.train.data.template import Encoder, Tally
from eagle.train.spec import TrainSpec

__all__ = ["check_text", "load_corpus", "lost", "make_corpus"]


def make_corpus(spec: TrainSpec, say: Callable[[str], None] = print) -> Corpus:
    """Tokenise the sources of a spec; no weight is loaded.

    Args:
        spec: the training spec.
        say: is told what was left out.

    Raises:
        DataError: there is nothing to learn from, or the tokenizer is not the model's.
        TargetError: the target has no tokenizer that can be loaded.
    """
    source = loading.locate(spec.target, spec.document.folder)
    tokenizer = loading.load_tokenizer(source)
    encoder = Encoder(tokenizer, _ends(source, tokenizer), spec.data.max_length)
    items = read_sources(spec.data.sources, spec.path, say)
    texts = encoder.encode(islice(items, spec.data.limit))
    tally = encoder.tally
    first = next(texts, None)
    if first is None:
        behind = f", {tally.cut:,} of them cut at {spec.data.max_length:,} tokens" * (tally.cut > 0)
        raise DataError(
            f"nothing can be learned from the {tally.read:,} conversations of data.sources: "
            f"{_left_out(tally)}{behind}"
        )
    info = {"tokenizer": tokenizer_digest(tokenizer), "asked": _asked(spec)}
    corpus = Corpus.of(chain((first,), texts), len(tokenizer), info)
    _check_vocabulary(corpus, loading.describe(source)[0].vocab_size, spec, "the text")
    corpus.info["conversations"] = tally.as_dict()
    cut = f"Cut at {spec.data.max_length:,} tokens: {tally.cut:,}."
    if tally.split:
        cut += f" Plain texts longer than that, used in pieces: {tally.split:,}."
    say(
        f"{tally.used:,} of {tally.read:,} conversations used: {len(corpus.tokens):,} tokens, "
        f"{corpus.answers.mean():.1%} of them an assistant's. Left out: {_left_out(tally)}. {cut}"
    )
    for line in lost(corpus.info["conversations"]):
        say(line)
    return corpus


def lost(counts: Any) -> list[str]:
    """Return what of the conversations that are used has no loss or is not read, a line each.

    Args:
        counts: of `Tally.as_dict`, or what a file has in its place; text that was packed by an
            earlier version has fewer of them.
    """
    counts = counts if isinstance(counts, dict) else {}
    answers, changed, wordless = (
        _number(counts.get(k)) for k in ("answers", "changed", "wordless")
    )
    dropped = counts.get("dropped")
    lines = []
    if changed:
        lines.append(
            f"{changed:,} of {answers:,} answers have no loss: the chat template renders them "
            "otherwise once there are later turns"
        )
    if wordless:
        lines.append(f"{wordless:,} of {answers:,} answers have no loss: they have no words")
    if dropped and isinstance(dropped, dict):
        each = (f"{what} ({_number(n):,} times)" for what, n in sorted(dropped.items()))
        lines.append(f"not read: {', '.join(each)}")
    return lines


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _left_out(tally: Tally) -> str:
    return f"{tally.silent:,} without an answer, {tally.refused:,} that the chat template refuses"


def load_corpus(
    spec: TrainSpec,
    kept: Path,
    say: Callable[[str], None] = print,
    target: Target | None = None,
    *,
    resumed: bool = False,
    trusted: bool = False,
) -> Corpus:
    """Return the text of a spec: packed text that it names, or that was kept, or made now.

    Kept text of other sources, or of a file that has changed since, is not used.

    Args:
        spec: the training spec.
        kept: where text that is made now is kept for the next time.
        say: is told what goes on.
        target: the target, if it is loaded already. One without a tokenizer takes any text.
        resumed: leave kept text alone, which is of the run that goes on: text that is made now is
            for `check_identity` to compare with it.
        trusted: take kept text as it is, since another process has just looked at it.

    Raises:
        DataError: the packed text is missing, damaged, or of another tokenizer.
    """
    packed = spec.path(spec.data.packed) if spec.data.packed is not None else kept
    if spec.data.packed is None and not kept.is_file():
        say("tokenising the conversations ...")
        corpus = make_corpus(spec, say)
        corpus.save(kept)
        return corpus
    corpus = Corpus.load(packed)
    if spec.data.packed is None and not trusted and _is_other(corpus, spec):
        say(f"{kept} is of other text than data.sources; tokenising the conversations ...")
        corpus = make_corpus(spec, say)
        if not resumed:
            corpus.save(kept)
        return corpus
    if target:
        tokenizer, vocabulary = target.tokenizer, target.info.vocab_size
    else:
        source = loading.locate(spec.target, spec.document.folder)
        tokenizer = loading.load_tokenizer(source)
        vocabulary = loading.describe(source)[0].vocab_size
    if tokenizer is not None and corpus.info.get("tokenizer") != tokenizer_digest(tokenizer):
        raise DataError(
            f"{packed} was tokenised with another tokenizer or chat template than the target "
            f"{spec.target.model!r} has; run `eagle data prepare` for this target"
        )
    _check_vocabulary(corpus, vocabulary, spec, str(packed))
    return corpus


def _asked(spec: TrainSpec) -> str | None:
    """Return what decides a spec's text, beside the tokenizer; None where a source is missing."""
    held = sources_digest(spec.data.sources, spec.path)
    return held and f"{held} {spec.data.limit} {spec.data.max_length}"


def _is_other(corpus: Corpus, spec: TrainSpec) -> bool:
    """Whether text was made of other sources than a spec's; not where these are gone since."""
    before = corpus.info.get("asked")
    return before is not None and _asked(spec) not in (None, before)


def _check_vocabulary(corpus: Corpus, size: int, spec: TrainSpec, what: str) -> None:
    """Refuse tokens that the target's weights do not know."""
    highest = int(corpus.tokens.max())
    if highest >= size:
        raise DataError(
            f"{what} holds token {highest}, but the weights of the target "
            f"{spec.target.model!r} know {size} tokens only: it was made with another tokenizer, "
            "or the tokenizer in the target's folder belongs to another model"
        )


def check_text(spec: TrainSpec, corpus: Corpus, shares: int = 1) -> None:
    """Refuse text that no batch can be made of.

    Args:
        spec: the training spec.
        corpus: the text.
        shares: see `TrainSpec.rows`.

    Raises:
        DataError: too few tokens are left to train on, a step takes more rows than they make, or
            no token of them can be learned.
    """
    training, heldout = corpus.split(spec.data.heldout, spec.data.seed)
    tokens = int((corpus.ends - corpus.starts)[training].sum())
    if tokens < spec.data.length:
        raise DataError(
            f"the training text has {tokens} tokens ({len(heldout)} of {len(corpus.ends)} "
            f"conversations are held out), not enough for one row of {spec.data.length}; lower "
            "data.length or data.heldout, or give more text"
        )
    rows = tokens // spec.data.length
    if spec.rows(shares) > rows:
        raise DataError(
            f"a step takes {spec.rows(shares):,} rows, and the training text makes {rows:,} of "
            f"{spec.data.length} tokens; lower batch, accumulate or data.length, or give more text"
        )
    pairs = corpus.answers[:-1] & corpus.answers[1:]
    pairs[corpus.ends[:-1] - 1] = False  # the next token is another conversation's
    if not np.flatnonzero(pairs).size:
        raise DataError(
            "no answer in the training text has two tokens in a row, so there is nothing to learn"
        )


def _ends(source: loading.Source, tokenizer: Any) -> list[int]:
    """Return the tokens that end a turn, without loading the model."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(source.path, **source.options).eos_token_id
    except (OSError, ValueError):
        ends = None
    ends = tokenizer.eos_token_id if ends is None and tokenizer is not None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
