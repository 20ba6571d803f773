"""From a training spec to its text: tokenised now, or read from the file that was made before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from eagle import loading
from eagle.errors import DataError
from eagle.target import Target
from eagle.train.config import TrainSpec
from eagle.train.corpus import Corpus, tokenizer_digest
from eagle.train.sources import read_sources
from eagle.train.template import Encoder

__all__ = ["load_corpus", "make_corpus"]


def make_corpus(spec: TrainSpec, say: Callable[[str], None] = print) -> Corpus:
    """Tokenise the sources of a spec; no weight is loaded.

    Args:
        spec: the training spec.
        say: is told what was left out.

    Raises:
        DataError: there is nothing to learn from.
        TargetError: the target has no tokenizer that can be loaded.
    """
    source = loading.locate(spec.target)
    tokenizer = loading.load_tokenizer(source)
    encoder = Encoder(tokenizer, _ends(source, tokenizer), spec.data.max_length)
    conversations = read_sources(spec.data.sources, spec.path)
    texts = encoder.encode(islice(conversations, spec.data.limit))
    corpus = Corpus.of(texts, len(tokenizer), {"tokenizer": tokenizer_digest(tokenizer)})
    tally = encoder.tally
    corpus.info["conversations"] = vars(tally)
    say(
        f"{tally.used:,} of {tally.read:,} conversations used: {len(corpus.tokens):,} tokens, "
        f"{corpus.answers.mean():.1%} of them an assistant's. Left out: {tally.silent:,} without "
        f"an answer, {tally.refused:,} that the chat template refuses. "
        f"Cut at {spec.data.max_length:,} tokens: {tally.cut:,}."
    )
    return corpus


def load_corpus(
    spec: TrainSpec,
    kept: Path,
    say: Callable[[str], None] = print,
    target: Target | None = None,
) -> Corpus:
    """Return the text of a spec: packed text that it names, or that was kept, or made now.

    Args:
        spec: the training spec.
        kept: where text that is made now is kept for the next time.
        say: is told what goes on.
        target: the target, if it is loaded already. One without a tokenizer takes any text.

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
    tokenizer = target.tokenizer if target else loading.load_tokenizer(loading.locate(spec.target))
    if tokenizer is None:
        fits = target is not None and int(corpus.tokens.max()) < target.info.vocab_size
    else:
        fits = corpus.info.get("tokenizer") == tokenizer_digest(tokenizer)
    if not fits:
        raise DataError(
            f"{packed} was tokenised with another tokenizer or chat template than the target "
            f"{spec.target.model!r} has; run `eagle data prepare` for this target"
        )
    return corpus


def _ends(source: loading.Source, tokenizer: Any) -> list[int]:
    """Return the tokens that end a turn, without loading the model."""
    from transformers import GenerationConfig

    try:
        ends = GenerationConfig.from_pretrained(source.path, **source.options).eos_token_id
    except (OSError, ValueError):
        ends = None
    ends = tokenizer.eos_token_id if ends is None and tokenizer is not None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
