"""What a loop has given so far, in numbers; knows no time but that of reading prompts."""

from __future__ import annotations

from dataclasses import dataclass

from eagle.decoding.requests import Event

__all__ = ["Tally"]


@dataclass
class Tally:
    """Figures of all requests that a loop has decoded, since it was made.

    Attributes:
        accepted: by draft position, in how many verifications its token was accepted.
        tokens: tokens that were given.
        verified: verifications, of all requests.
        committed: tokens that these gave.
        drafted: candidates that these verified.
        prompt_tokens: tokens of the prompts that were read, those found in blocks included.
        reading: seconds in which prompts were read; where that goes on between cycles, without
            what the device does of it while the host goes on.
    """

    accepted: list[int]
    tokens: int = 0
    verified: int = 0
    committed: int = 0
    drafted: int = 0
    prompt_tokens: int = 0
    reading: float = 0.0

    def count_read(self, event: Event, prompt: int) -> None:
        """Count what came of reading a prompt of so many tokens."""
        self.tokens += len(event.tokens)
        self.prompt_tokens += prompt

    def count_verified(self, event: Event, candidates: int) -> None:
        """Count what came of verifying so many candidates of one request."""
        self.tokens += len(event.tokens)
        self.verified += 1
        self.committed += len(event.tokens)
        self.drafted += candidates
        for place in range(event.drafted):
            self.accepted[place] += 1
