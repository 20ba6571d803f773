"""Asks a server for tokens by its public interface; what they are held against it does not know."""

from __future__ import annotations

from typing import Any

from eagle.errors import RemoteError, RequestError
from eagle.remote import Server
from eagle.target import Target

__all__ = ["Asking"]

_NUMBERED = "token_id:"
_PLAIN: dict[str, Any] = {
    "logprobs": 1,
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "ignore_eos": True,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
"""What not every server takes: tokens by number, and none of the defaults that a model recommends,
which servers apply to who does not say otherwise. Each is left out for a server that refuses it."""


class Asking:
    """Asks for answers and reads their tokens.

    Args:
        server: what is asked.
        target: whose tokens they should be.

    Attributes:
        steps: verifications that the server tells of, if it does.
        accepted: draft tokens likewise.
    """

    def __init__(self, server: Server, target: Target) -> None:
        self._server, self._target = server, target
        self._extra = dict(_PLAIN)
        self._by_text: dict[str, int | None] | None = None
        self.steps = self.accepted = 0

    @property
    def tau(self) -> float:
        """Tokens committed per verification, as far as the server tells; 0 if it does not."""
        return 1 + self.accepted / self.steps if self.steps else 0.0

    def answers(self, body: dict[str, Any], count: int, most: int) -> list[list[int]]:
        """Return the tokens of so many answers, of at most so many tokens each.

        Args:
            body: of the request, but for what says how tokens are told.
            count: answers that it asks for.
            most: tokens that count of each.

        Raises:
            RemoteError: the server refuses, or its answers do not tell their tokens.
            RequestError: a text is not that of exactly one token.
        """
        answer = self._post(body)
        choices = answer.get("choices")
        if not isinstance(choices, list) or len(choices) != count:
            raise RemoteError(f"{self._server.url} was asked for {count} answers and gave others")
        told = (answer.get("metrics") or {}).get("speculative_decoding") or {}
        self.steps += int(told.get("num_spec_steps", 0))
        self.accepted += int(told.get("num_accepted_draft_tokens", 0))
        return [self._tokens(choice, most) for choice in choices]

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        while True:
            try:
                return self._server.post("/completions", {**body, **self._extra})
            except RemoteError as error:
                if error.status not in (400, 422) or not self._extra:
                    raise
                # One that says which field it refuses loses that one, others lose all but one.
                if error.param in self._extra:
                    del self._extra[error.param]
                elif self._extra.keys() == {"logprobs"}:
                    raise
                else:
                    self._extra = {"logprobs": 1}

    def _tokens(self, choice: dict[str, Any], most: int) -> list[int]:
        found = choice.get("token_ids")
        if not isinstance(found, list):
            names = (choice.get("logprobs") or {}).get("tokens")
            found = [self._token(str(name)) for name in names] if isinstance(names, list) else []
        found = found[:most]
        sizes = range(self._target.embeddings)
        if not found or not all(isinstance(token, int) and token in sizes for token in found):
            raise RemoteError(
                f"{self._server.url} tells neither token ids nor log probabilities with its "
                "answers, or not this target's, so their tokens are not known"
            )
        ends = self._target.eos_tokens
        if len(found) < most and found[-1] not in ends:
            if choice.get("finish_reason") != "stop" or len(ends) != 1:
                raise RemoteError(
                    f"{self._server.url} ends an answer after {len(found)} tokens of {most} and "
                    "does not tell by which token; it has to take 'ignore_eos'"
                )
            found += ends  # the one that it ended by, and did not list
        return found

    def _token(self, name: str) -> int:
        if name.startswith(_NUMBERED) and name[len(_NUMBERED) :].isdigit():
            return int(name[len(_NUMBERED) :])
        found = self._texts().get(name)
        if found is None:
            raise RequestError(
                f"{self._server.url} tells tokens by their text, and {name!r} is not the text of "
                "exactly one token of this target"
            )
        return found

    def _texts(self) -> dict[str, int | None]:
        """Return the token that each text stands for, None where it stands for several."""
        if self._by_text is None:
            self._by_text = {}
            tokenizer = self._target.tokenizer
            for token in range(len(tokenizer)):
                text = tokenizer.decode([token])
                self._by_text[text] = None if text in self._by_text else token
        return self._by_text
