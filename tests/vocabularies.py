"""Tokenizers of the kinds that differ in how they decode, built on the spot."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

__all__ = ["KINDS"]

_WORDS = ["the", "cat", "a", "b", "X", ".", "é", "€", "\ufffd"]


def _names():
    return {"eos_token": "</s>", "additional_special_tokens": ["<special>"]}


def _wrap(core):
    core.add_special_tokens([AddedToken(t, special=True) for t in ("</s>", "<special>")])
    core.add_tokens([AddedToken("<added>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core, **_names())


def byte_level():
    """GPT-2's kind: tokens of bytes, some of them parts of characters."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = ["Ġthe", "Ġcat", "âĤ", "ðŁ", "ĤĤ"]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(letters + merged)}, []))
    core.decoder = decoders.ByteLevel()
    return _wrap(core)


def _pieces():
    spaced = [f"▁{word}" for word in _WORDS]
    return ["<unk>", "▁", "▁▁", "▁▁▁", *spaced, *_WORDS]


def byte_fallback():
    """Llama 2's kind: words with a space in front, the text's first dropped, and byte tokens."""
    vocabulary = [*_pieces(), *(f"<0x{b:02X}>" for b in range(256))]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, [], byte_fallback=True))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    return _wrap(core)


def metaspace():
    """T5's kind: the first token loses all of its spaces."""
    core = Tokenizer(models.Unigram([(t, -1.0) for t in _pieces()], unk_id=0))
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    return _wrap(core)


def word_piece():
    """BERT's kind: what continues a word is marked."""
    vocabulary = ["[UNK]", *_WORDS, *(f"##{word}" for word in _WORDS)]
    core = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocabulary)}))
    core.decoder = decoders.WordPiece(cleanup=False)
    return _wrap(core)


def suffixed():
    """GPT-1's kind: what ends a word is marked, and the text's last mark is no space."""
    vocabulary = [*_WORDS, *(f"{word}</w>" for word in _WORDS)]
    core = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, []))
    core.decoder = decoders.BPEDecoder(suffix="</w>")
    return _wrap(core)


KINDS = {
    kind.__name__: kind for kind in (byte_level, byte_fallback, metaspace, word_piece, suffixed)
}
