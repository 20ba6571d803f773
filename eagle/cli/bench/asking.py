"""What ``eagle bench ranks`` asks the target; knows prompts and answers, no head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagle.spec import DecoderSpec
    from eagle.train.evaluation import KeptSet

__all__ = ["Asking"]

_HELD_OUT = "held-out"


@dataclass(frozen=True)
class Asking:
    """Which prompts are answered, and how.

    Attributes:
        files: of prompts, by what kind of text they are; none for held-out conversations.
        limit: prompts of each.
        max_new_tokens: longest answer.
        max_prompt: longest prompt.
        all_turns: whether all turns of a line are asked, and not only the first.
    """

    files: Mapping[str, Path]
    limit: int
    max_new_tokens: int
    max_prompt: int
    all_turns: bool

    def ask(
        self, spec: DecoderSpec, target: Any, kept: Path | None, say: Callable[[str], None]
    ) -> dict[str, KeptSet]:
        """Return what the target answers, or what a file says that it did.

        Args:
            spec: of the target.
            target: the target, loaded.
            kept: the file; written where it is not there yet.
            say: is told what goes on.

        Raises:
            DataError: prompts or file cannot be read, or are others than they should be.
        """
        from eagle.train.evaluation import KeptAnswers

        asked = {
            "prompts": ", ".join(f"{name}={file.name}" for name, file in self.files.items()),
            "--limit": str(self.limit),
            "--max-new-tokens": str(self.max_new_tokens),
            "--max-prompt": str(self.max_prompt),
            "--all-turns": str(self.all_turns),
            "dtype": str(target.dtype).removeprefix("torch."),
        }
        name = target.info.name
        if kept is not None and kept.exists():
            return KeptAnswers.read(kept, name, asked, target.info.vocab_size).sets
        made = KeptAnswers(target=name, asked=asked, sets=dict(self._sets(spec, target, say)))
        if kept is not None:
            made.write(kept)
        return made.sets

    def _sets(
        self, spec: DecoderSpec, target: Any, say: Callable[[str], None]
    ) -> Iterator[tuple[str, KeptSet]]:
        from eagle.bench import read_conversations, read_prompts
        from eagle.decoding import encode
        from eagle.errors import DataError
        from eagle.train import evaluation
        from eagle.train.evaluation import KeptSet

        limits = {"max_new_tokens": self.max_new_tokens, "max_prompt": self.max_prompt}
        if not self.files:
            tokens = evaluation.embedded_prompts(spec.target, self.limit, say)
            answers = evaluation.answered(target, tokens, say=say, **limits)
            of = f"sharegpt, held out: {len(answers)} prompts"
            yield _HELD_OUT, KeptSet(source=of, answers=_pairs(answers))
        for name, file in self.files.items():
            if self.all_turns:
                longest = min(self.max_prompt, target.capacity - self.max_new_tokens)
                talks = read_conversations(file)[: self.limit]
                with target.stock():
                    answers = [
                        one
                        for turns in talks
                        for one in evaluation.converse(
                            target, turns, self.max_new_tokens, longest, say
                        )
                    ]
                if not answers:
                    raise DataError(f"{file} has no turn of at most {longest} tokens")
                of = f"{file.name}: {len(answers)} turns of {len(talks)} conversations"
            else:
                tokens = [
                    encode(text, target.tokenizer, raw=False, embeddings=target.embeddings)
                    for text in read_prompts(file)[: self.limit]
                ]
                answers = evaluation.answered(target, tokens, say=say, **limits)
                of = f"{file.name}: {len(answers)} prompts"
            yield name, KeptSet(source=of, answers=_pairs(answers))


def _pairs(answers: Any) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    return tuple((one.prompt, one.answer) for one in answers)
