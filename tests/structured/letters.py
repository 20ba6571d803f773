"""Tokenizers of a few letters, as fast ones of transformers that llguidance reads."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MARKS = '{}":, '  # what JSON needs beside letters and digits


@cache
def letters(size):
    """Return a tokenizer of *size* tokens: three special ones, then characters, all of one byte."""
    special = ["<pad>", "<bos>", "<eos>"]
    signs = "0123456789" if size < 20 else MARKS + "0123456789abcdefghijklmnopqrstuvwxyz"
    signs += "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    names = [*special, *signs.replace(" ", "Ġ")][:size]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
