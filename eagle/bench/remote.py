"""Does a server say what a target would have said? Asked from outside, over its public interface.

Knows what to hold a server's tokens against; whose server it is and how it is asked it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from eagle.bench.asking import Asking
from eagle.bench.contexts import draws_of
from eagle.bench.identity import Choice, evidence, strays
from eagle.bench.significance import check_alpha, examine
from eagle.bench.verify import Progress, Sampled
from eagle.decoding import Prompt, encode
from eagle.remote import Server
from eagle.target import Target

__all__ = ["ServedGreedy", "verify_served", "verify_served_greedy"]

_ROWS = 64  # texts in one scoring pass
# Answers in one request. vLLM reads as many prompts in a pass as its max_num_batched_tokens allows
# and cuts the next; on a CPU, 0.32 ends where it cut the prompt of a request with a seed.
_AT_ONCE = 16
_READ, _WIDTH = 8, 16  # answers read at once, and in passes as wide as a token tree


@dataclass(frozen=True)
class ServedGreedy:
    """What `verify_served_greedy` found.

    Attributes:
        prompts: how many were answered.
        tokens: that the server gave, over all prompts.
        tau: tokens committed per verification; 0 if the server does not tell.
        strays: its tokens that are not the best by the target's own full pass.
        noise: median over all positions, see `eagle.bench.identity.evidence`.
    """

    prompts: int
    tokens: int
    tau: float
    strays: tuple[Choice, ...]
    noise: float

    @property
    def mistakes(self) -> tuple[Choice, ...]:
        """The strays that are no ties."""
        return tuple(choice for choice in self.strays if not choice.tie)

    @property
    def holds(self) -> bool:
        """Every token is the target's choice, or one of a tie."""
        return not self.mistakes


def verify_served_greedy(
    target: Target,
    server: Server,
    model: str,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    progress: Progress = lambda what, done, total: None,
) -> ServedGreedy:
    """Hold a server's answers at temperature 0 against the target's own choices, token by token.

    The target reads prompt and answer by passes of its own, so that a token is judged given the
    server's text before it, also behind a tie. The noise that tells a tie from a mistake is that of
    the dtype that the target is loaded in here: load it in the server's.

    Args:
        target: what the server should serve, loaded here.
        server: what is asked.
        model: by which name.
        prompts: at least one.
        max_new_tokens: longest answer; the end of the text does not end it where the server takes
            ``ignore_eos``.
        progress: called as by `verify_greedy`.

    Raises:
        RemoteError: the server refuses, or its answers do not tell their tokens.
        RequestError: a prompt is not valid.
    """
    texts = _encoded(target, prompts)
    asking = Asking(server, target)
    answers: list[list[int]] = []
    progress("asking the server", 0, len(texts))
    for text in texts:
        body = {
            "model": model,
            "prompt": text,
            "n": 1,
            "max_tokens": max_new_tokens,
            "temperature": 0.0,
            "top_p": 1.0,
        }
        answers += asking.answers(body, 1, max_new_tokens)
        progress("asking the server", len(answers), len(texts))
    judged = evidence(
        target,
        texts,
        answers,
        [()] * len(texts),
        width=_WIDTH,
        batch=_READ,
        progress=_counted(progress, "reading the answers", len(texts)),
    )
    return ServedGreedy(
        prompts=len(texts),
        tokens=sum(map(len, answers)),
        tau=asking.tau,
        strays=strays(answers, judged, target.dtype),
        noise=float(torch.cat([own.noise for own in judged]).median()),
    )


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
    texts = _encoded(target, prompts)
    generator = torch.Generator().manual_seed(seed)
    asking = Asking(server, target)
    answers: list[Sequence[int]] = []
    progress("asking the server", 0, len(texts))
    for done, text in enumerate(texts, 1):
        for start in range(0, samples, _AT_ONCE):
            count = min(_AT_ONCE, samples - start)
            body = {
                "model": model,
                "prompt": text,
                "n": count,
                "max_tokens": tokens,
                "temperature": temperature,
                "top_p": 1.0,
                "seed": int(torch.randint(2**31, (), generator=generator)),
            }
            answers += asking.answers(body, count, tokens)
        progress("asking the server", done, len(texts))
    owners = [index for index in range(len(texts)) for _ in range(samples)]
    scored = _counted(progress, "scoring", len(owners))
    draws = draws_of(target, texts, owners, answers, temperature, _ROWS, scored)
    return Sampled(
        prompts=len(texts),
        samples=samples,
        tokens=tokens,
        tau=asking.tau,
        test=examine(
            draws,
            alpha=alpha,
            seed=seed,
            progress=lambda done, total: progress("simulating", done, total),
        ),
    )


def _encoded(target: Target, prompts: Sequence[Prompt]) -> list[list[int]]:
    return [
        encode(prompt, target.tokenizer, raw=False, embeddings=target.embeddings)
        for prompt in prompts
    ]


def _counted(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress(what, done, total)

    return more
