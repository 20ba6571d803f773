"""Does a server say what a target would have said? Asked from outside, over its public interface.

Knows how to ask for tokens and what to hold them against; it does not know whose server it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from eagle.bench.contexts import draws_of
from eagle.bench.significance import check_alpha, examine
from eagle.bench.verify import Progress, Sampled
from eagle.decoding import Prompt, encode
from eagle.errors import RemoteError, RequestError
from eagle.remote import Server
from eagle.target import Target

__all__ = ["verify_served"]

_ROWS = 64  # texts in one scoring pass
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


def verify_served(
    target: Target,
    server: Server,
    model: str,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    samples: int,
    tokens: int,
    alpha: float,
    seed: int,
    progress: Progress = lambda what, done, total: None,
) -> Sampled:
    """Test the first tokens of a server's answers against a target's distribution.

    The prompts are sent as token ids, and the answers' tokens are read by number where the server
    gives numbers, as ours and vLLM do, otherwise by the texts in their log probabilities, which
    then have to tell tokens apart.

    Args:
        target: what the server should serve, loaded here.
        server: what is asked.
        model: by which name.
        prompts: at least one.
        temperature: above 0.
        samples: answers to each prompt.
        tokens: of each answer, from its first.
        alpha: size of the test.
        seed: of the samples and of the simulations.
        progress: called as by `verify_sampled`.

    Raises:
        RemoteError: the server refuses, or its answers do not tell their tokens.
        RequestError: alpha is out of bounds, or a prompt is not valid.
    """
    check_alpha(alpha)
    texts = [
        encode(prompt, target.tokenizer, raw=False, embeddings=target.embeddings)
        for prompt in prompts
    ]
    generator = torch.Generator().manual_seed(seed)
    asking = _Asking(server, target)
    answers: list[Sequence[int]] = []
    progress("asking the server", 0, len(texts))
    for text in texts:
        body = {
            "model": model,
            "prompt": text,
            "n": samples,
            "max_tokens": tokens,
            "temperature": temperature,
            "top_p": 1.0,
            "seed": int(torch.randint(2**31, (), generator=generator)),
        }
        answers += asking.answers(body, samples, tokens)
        progress("asking the server", len(answers) // samples, len(texts))
    owners = [index for index in range(len(texts)) for _ in range(samples)]
    draws = draws_of(target, texts, owners, answers, temperature, _ROWS, _scored(progress, owners))
    return Sampled(
        prompts=len(texts),
        samples=samples,
        tokens=tokens,
        tau=1 + asking.accepted / asking.steps if asking.steps else 0.0,
        test=examine(
            draws,
            alpha=alpha,
            seed=seed,
            progress=lambda done, total: progress("simulating", done, total),
        ),
    )


def _scored(progress: Progress, owners: Sequence[int]) -> Callable[[int], None]:
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress("scoring", done, len(owners))

    return more


class _Asking:
    """Asks for answers and reads their tokens.

    Attributes:
        steps: verifications that the server tells of, if it does.
        accepted: draft tokens likewise.
    """

    def __init__(self, server: Server, target: Target) -> None:
        self._server, self._target = server, target
        self._extra = dict(_PLAIN)
        self._by_text: dict[str, int | None] | None = None
        self.steps = self.accepted = 0

    def answers(self, body: dict[str, Any], count: int, most: int) -> list[list[int]]:
        """Return the tokens of so many answers, of at most so many tokens each."""
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
