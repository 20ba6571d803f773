"""Which tokens may follow an answer by a grammar; knows llguidance's matcher, not who wrote what.

What is asked of it is a function of the text alone, as every logits processor's answer is: the
nodes of a tree are texts that mostly begin alike, so a matcher goes back to where the text that is
asked about leaves the one before it, and on from there.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eagle.errors import RequestError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

__all__ = ["Following", "Grammar"]

_gate = threading.Lock()
_tokenizers: weakref.WeakKeyDictionary[Any, dict[frozenset[int], LLTokenizer]] = (
    weakref.WeakKeyDictionary()
)


class Grammar:
    """What answers have to follow; one of them serves any number of requests at once.

    Given as one of a request's `processors`, it lets only those tokens have a finite score that
    some answer by the grammar begins with, and end tokens only where the answer is complete. The
    distribution that is kept is the target's, masked so at every token. An answer that
    `max_new_tokens` cuts is the beginning of one by the grammar.

    Args:
        tokenizer: the target's, a fast one of transformers.
        written: the grammar, as llguidance reads it.
        name: of the grammar, in errors.

    Raises:
        RequestError: the grammar cannot be followed, or the tokenizer cannot be read.
    """

    def __init__(self, tokenizer: Any, written: str, name: str) -> None:
        from llguidance import LLMatcher

        wrong, said = LLMatcher.validate_grammar_with_warnings(written, limits=_limits())
        if wrong:
            why = " ".join(" ".join(said).split())
            raise RequestError(f"{name} cannot be followed: {why:.300}")
        self._tokenizer, self._written, self._name = tokenizer, written, name
        own = getattr(tokenizer, "eos_token_id", None)
        self._lock = threading.Lock()
        self._begun: dict[frozenset[int], LLMatcher] = {}
        self._matcher(frozenset() if own is None else frozenset([own]))

    def __reduce__(self) -> tuple[type[Grammar], tuple[Any, str, str]]:
        return Grammar, (self._tokenizer, self._written, self._name)

    def for_request(self, prompt: Sequence[int], ends: Collection[int]) -> Following:
        """Return what answers one prompt's request, whose answer begins behind the prompt.

        Args:
            prompt: its token ids.
            ends: tokens that end the target's texts.
        """
        return Following(self._matcher(frozenset(ends)), len(prompt), frozenset(ends), self._name)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Refuse: where the prompt ends is not to be seen from a text."""
        raise RequestError(
            "a grammar has to know where the prompt ends; outside of a decoder, call what its "
            "for_request(prompt, ends) returns"
        )

    def _matcher(self, ends: frozenset[int]) -> LLMatcher:
        """Return a matcher at the beginning of an answer; made once, then copied."""
        with self._lock:
            if ends not in self._begun:
                self._begun[ends] = self._make(ends)
            return self._begun[ends].deep_copy()

    def _make(self, ends: frozenset[int]) -> LLMatcher:
        from llguidance import LLMatcher

        matcher = LLMatcher(
            _read(self._tokenizer, ends), self._written, log_level=0, limits=_limits()
        )
        if matcher.is_error():
            raise RequestError(f"{self._name} cannot be followed: {_why(matcher)}")
        # Some are found to have no answer only when something is asked of them.
        first = matcher.deep_copy()
        if not any(first.compute_bitmask()) or first.is_error():
            raise RequestError(
                f"{self._name} cannot be followed: no token of this target's begins an answer by it"
            )
        return matcher


class Following:
    """A grammar as one request follows it: a logits processor.

    Args:
        matcher: at the beginning of an answer.
        start: tokens of the prompt.
        ends: tokens that end a text.
        name: of the grammar, in errors.
    """

    rows_apart = True
    any_prefix = True  # the matcher's state is where the text before this one had come to

    def __init__(self, matcher: LLMatcher, start: int, ends: frozenset[int], name: str) -> None:
        self._matcher, self._start, self._name = matcher, start, name
        self._ends = ends
        self._path: list[int] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores ``[n, V]``, minus infinity where the grammar has no such continuation.

        Raises:
            RequestError: a text does not follow the grammar, or it can no longer be followed.
        """
        answers, vocab = ids[:, self._start :].tolist(), scores.shape[-1]
        allowed = torch.stack([self._allowed(answer, vocab) for answer in answers])
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)

    def _allowed(self, answer: list[int], vocab: int) -> Tensor:
        """Return bool ``[V]``: the tokens that may follow an answer so far."""
        # Behind its end there is no grammar; a text that goes on there ends again and again.
        ended = next((place for place, token in enumerate(answer) if token in self._ends), None)
        if ended is not None:
            allowed = torch.zeros(vocab, dtype=torch.bool)
            allowed[sorted(self._ends)] = True
            return allowed
        self._go_to(answer)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            self._fail()
        found = np.unpackbits(bits, bitorder="little")[:vocab].astype(bool)
        allowed = torch.zeros(vocab, dtype=torch.bool)  # ids of no token are never allowed
        allowed[: len(found)] = torch.from_numpy(found)
        return allowed

    def _go_to(self, answer: list[int]) -> None:
        """Bring the matcher behind an answer, from wherever it is."""
        common = 0
        for before, now in zip(self._path, answer, strict=False):
            if before != now:
                break
            common += 1
        if (back := len(self._path) - common) and not self._matcher.rollback(back):
            self._fail()
        del self._path[common:]
        new = answer[common:]
        taken = self._matcher.try_consume_tokens(new) if new else 0
        self._path += new[:taken]
        if taken < len(new):
            raise RequestError(
                f"the answer does not follow {self._name}: token {new[taken]} cannot stand there"
            )

    def _fail(self) -> None:
        why = _why(self._matcher)
        raise RequestError(f"{self._name} can no longer be followed: {why}")


def _why(matcher: LLMatcher) -> str:
    """Return what a matcher says is wrong, without what it tells its authors of its state."""
    said = " ".join(matcher.get_error().partition("<state>")[0].split())
    return f"{said:.300}"


def _limits() -> LLParserLimits:
    """Return how much a grammar may be ambiguous: a thousand alternatives are not too many."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_items_in_row=1200, step_max_items=2000)


def _read(tokenizer: Any, ends: frozenset[int]) -> LLTokenizer:
    """Return a tokenizer as llguidance has it: a second or two of work, done once.

    Raises:
        RequestError: it is none that llguidance can read.
    """
    with _gate:
        try:
            known = _tokenizers.setdefault(tokenizer, {})
        except TypeError:  # None, or something else that is no tokenizer
            known = {}
        if ends not in known:
            from llguidance.hf import from_tokenizer

            try:
                known[ends] = from_tokenizer(tokenizer, eos_token=sorted(ends) or None)
            except Exception as error:  # of a Rust library, about files of many authors
                raise RequestError(
                    "grammars need a fast tokenizer of transformers that llguidance can read, "
                    f"and this target's is {type(tokenizer).__name__}: {error}"
                ) from error
        return known[ends]
