from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from eagle.cli import main
from eagle.plugin.registry import default_registry


@dataclass(frozen=True)
class Ran:
    """What one run of the command line left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def eagle(capsys):
    """Run the command line in this process, as its entry point would."""

    def run(*arguments: str) -> Ran:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        captured = capsys.readouterr()
        return Ran(exit_.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of the import path in which a test installs distributions."""
    monkeypatch.syspath_prepend(tmp_path)
    default_registry.cache_clear()
    yield tmp_path
    default_registry.cache_clear()


@dataclass(frozen=True)
class Folders:
    """A tiny target with a tokenizer of words, and its head, as a user would have them."""

    target: Path
    head: Path

    def options(self, *more: str) -> tuple[str, ...]:
        """Return the options that select them, in float32 and with a tree that fits."""
        settings = (f"head.weights={self.head}", "target.dtype=float32", "tree.tree=reference-25")
        chosen = [word for setting in settings for word in ("--set", setting)]
        return ("--target", str(self.target), *chosen, *more)


@pytest.fixture(scope="session")
def folders(pair, tmp_path_factory):
    target, head = pair
    folder = tmp_path_factory.mktemp("tiny") / "target"
    target.model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    kept = folder.parent / "head"
    shutil.copytree(head, kept)
    return Folders(folder, kept)


def word_tokenizer():
    """Return a tokenizer whose token t is the word "wt"; 0 to 2 are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>"]
    words = {word: i for i, word in enumerate([*special, *(f"w{t}" for t in range(3, 64))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
    )
