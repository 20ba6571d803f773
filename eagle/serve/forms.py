"""How answers are written, whole or in pieces, in OpenAI's form; knows results, no connection."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from eagle.decoding import Event, Result, TokenLogprobs
from eagle.serve.tokens import TokenTexts

__all__ = ["ChatForm", "Form", "TextForm", "acceptance", "usage"]

_LEAST = -9999.0  # JSON has no infinity


def usage(prompts: Sequence[int], tokens: int) -> dict[str, Any]:
    """Return what an answer used: a prompt counts once, however many answers it has."""
    prompt = sum(prompts)
    return {"prompt_tokens": prompt, "completion_tokens": tokens, "total_tokens": prompt + tokens}


def acceptance(results: Sequence[Result], depth: int) -> dict[str, Any]:
    """Return how well drafting went, as vLLM spells it in an answer's ``metrics``.

    Args:
        results: the answers.
        depth: levels that a step drafts, at most.
    """
    steps = sum(result.stats.cycles for result in results)
    # In how many steps a path of at least so many draft tokens was accepted, from none on.
    found = [result.stats.accepted_per_position for result in results]
    most = max([depth, *map(len, found)])
    by_place = [[*places, *[0] * (most - len(places))] for places in found]
    reached = [steps, *map(sum, zip(*by_place, strict=True))]
    accepted = sum(reached[1:])
    histogram = [less - more for less, more in zip(reached, [*reached[1:], 0], strict=True)]
    drafted = sum(result.stats.drafted for result in results)
    told = {
        "mean_acceptance_length": 1 + accepted / steps if steps else 0.0,
        "acceptance_histogram": histogram,
        "num_spec_steps": steps,
        "num_accepted_draft_tokens": accepted,
        "num_spec_tokens": depth,
        "num_draft_tokens": drafted,
        # Of a tree only one path is accepted, so this is a chain's rate for chains alone.
        "draft_acceptance_rate": accepted / drafted if drafted else 0.0,
    }
    return {"speculative_decoding": told}


class Form(Protocol):
    """How one request is answered."""

    @property
    def plain(self) -> bool:
        """Whether a piece without log probabilities has nothing but its text."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return what stands before an answer's first piece."""
        ...

    def piece(self, index: int, event: Event) -> dict[str, Any] | None:
        """Return a piece of an answer; None where there is nothing to say yet."""
        ...

    def ending(self, index: int, reason: str) -> dict[str, Any]:
        """Return what stands behind an answer's last piece."""
        ...

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Return an event of a stream."""
        ...

    def whole(self, results: Sequence[Result], **more: Any) -> dict[str, Any]:
        """Return all answers at once."""
        ...


class _Written:
    """What chats and completions have in common.

    Args:
        model: the name that clients know the target by.
        fingerprint: of what answers.
        texts: of tokens.
        numbers: the ids of tokens are told beside their text, as vLLM does on request.
        named: in log probabilities, tokens are ``token_id:N``, likewise.
    """

    prefix, object, piece_object = "", "", ""

    def __init__(
        self,
        model: str,
        fingerprint: str,
        texts: TokenTexts,
        *,
        numbers: bool = False,
        named: bool = False,
    ) -> None:
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._texts, self._numbers, self._named = texts, numbers, named
        self._offsets: dict[int, int] = {}  # of each answer, characters of tokens told

    @property
    def plain(self) -> bool:
        """See `Form.plain`."""
        return not self._numbers

    def _name(self, token: int) -> str:
        return f"token_id:{token}" if self._named else self._texts.text(token)

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """See `Form.chunk`."""
        return {**self._head, "object": self.piece_object, "choices": choices, **more}

    def _whole(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": self.object, "choices": choices, **more}

    def _choice(
        self, index: int, tokens: Sequence[int], reason: str | None = None, **said: Any
    ) -> dict[str, Any]:
        choice = _choice(index, reason, **said)
        if self._numbers:
            choice["token_ids"] = list(tokens)
        return choice


class ChatForm(_Written):
    """Answers of ``/v1/chat/completions``; *pieces*: say of each piece who drafted it."""

    prefix, object, piece_object = "chatcmpl", "chat.completion", "chat.completion.chunk"
    pieces = False

    @property
    def plain(self) -> bool:
        """See `Form.plain`."""
        return not (self._numbers or self.pieces)

    def opening(self, index: int) -> dict[str, Any] | None:
        """See `Form.opening`."""
        return _choice(index, delta={"role": "assistant", "content": ""})

    def piece(self, index: int, event: Event) -> dict[str, Any] | None:
        """See `Form.piece`."""
        if not (event.text or self._numbers or event.logprobs):
            return None
        choice = self._choice(index, event.tokens, delta={"content": event.text})
        choice["logprobs"] = self._told(event.logprobs)
        if self.pieces:
            choice["pieces"] = [{"text": p.text, "drafted": p.drafted} for p in event.pieces]
        return choice

    def ending(self, index: int, reason: str) -> dict[str, Any]:
        """See `Form.ending`."""
        return _choice(index, reason, delta={})

    def whole(self, results: Sequence[Result], **more: Any) -> dict[str, Any]:
        """See `Form.whole`."""
        choices = [
            self._choice(
                index,
                result.tokens,
                result.finish_reason,
                message={"role": "assistant", "content": result.text, "refusal": None},
            )
            | {"logprobs": self._told(result.logprobs)}
            for index, result in enumerate(results)
        ]
        return self._whole(choices, more)

    def _told(self, given: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if given is None:
            return None
        content = [
            {
                **self._one(each.token, each.logprob),
                "top_logprobs": [self._one(*candidate) for candidate in each.top],
            }
            for each in given
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        number = max(logprob, _LEAST)
        return {"token": self._name(token), "logprob": number, "bytes": self._texts.bytes(token)}


class TextForm(_Written):
    """Answers of ``/v1/completions``."""

    prefix, object, piece_object = "cmpl", "text_completion", "text_completion"

    def opening(self, index: int) -> dict[str, Any] | None:
        """See `Form.opening`."""
        return None

    def piece(self, index: int, event: Event) -> dict[str, Any] | None:
        """See `Form.piece`."""
        if not (event.text or self._numbers or event.logprobs):
            return None
        choice = self._choice(index, event.tokens, text=event.text)
        choice["logprobs"] = self._told(index, event.logprobs)
        return choice

    def ending(self, index: int, reason: str) -> dict[str, Any]:
        """See `Form.ending`."""
        return _choice(index, reason, text="")

    def whole(self, results: Sequence[Result], **more: Any) -> dict[str, Any]:
        """See `Form.whole`."""
        choices = [
            self._choice(index, result.tokens, result.finish_reason, text=result.text)
            | {"logprobs": self._told(index, result.logprobs)}
            for index, result in enumerate(results)
        ]
        return self._whole(choices, more)

    def _told(self, index: int, given: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
        if given is None:
            return None
        told: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        offset = self._offsets.get(index, 0)
        for each in given:
            told["tokens"].append(self._name(each.token))
            told["token_logprobs"].append(max(each.logprob, _LEAST))
            # The chosen one is among them, likely or not, as OpenAI has it.
            top = dict([*each.top, (each.token, each.logprob)])
            told["top_logprobs"].append({self._name(t): max(p, _LEAST) for t, p in top.items()})
            told["text_offset"].append(offset)
            offset += len(self._texts.text(each.token))
        self._offsets[index] = offset
        return told


def _choice(index: int, reason: str | None = None, **said: Any) -> dict[str, Any]:
    return {"index": index, **said, "logprobs": None, "finish_reason": reason}
