"""Turns the embedded GGUF file into a transformers model folder; knows one tokenizer family.

The weights are unpacked by transformers. The tokenizer is built here, because what transformers
reads from GGUF depends on its version: 5.17 takes the wrong end-of-text token, and none splits
digits off first, as SmolLM2's tokenizer does (so that a blank line before a number, say, would
come out as two tokens that the model hardly saw in training).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eagle.errors import AssetError
from eagle.host import without_bars

__all__ = ["convert", "gguf_options"]

CONTROL = 3  # token type of special tokens, GGUF specification


def gguf_options() -> dict[str, Any]:
    """Return what `from_pretrained` needs beside ``gguf_file=`` to unpack the weights.

    Left packed, they would run in float32 kernels.
    """
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


def convert(gguf: Path, folder: Path) -> None:
    """Write model, tokenizer and generation config of a GGUF file to a new folder.

    Args:
        gguf: the file; its tokenizer must be of the `smollm` kind.
        folder: created; bfloat16 safetensors, with the embeddings still tied.

    Raises:
        AssetError: the tokenizer is of another kind.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer(gguf)
    with without_bars(gguf=True):
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            trust_remote_code=False,
            **gguf_options(),
        )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    with without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors are written for their owner alone; a cache may be shared


def _tokenizer(gguf: Path) -> Any:
    """Build the tokenizer from the file's metadata."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    fields = _metadata(gguf)
    if (kind := fields["tokenizer.ggml.pre"]) != "smollm":
        raise AssetError(f"{gguf.name} has a tokenizer of kind {kind!r}; only 'smollm' is known")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    core = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    core.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    core.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in special]
    )
    named = {
        f"{role}_token": tokens[fields[f"tokenizer.ggml.{key}_token_id"]]
        for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown"))
    }
    template = fields["tokenizer.chat_template"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=template,
        # Cleaning up would take spaces away before punctuation: text would not come back.
        clean_up_tokenization_spaces=False,
        **named,
    )


def _metadata(gguf: Path) -> dict[str, Any]:
    """Return the file's tokenizer fields: text, numbers, and lists of either."""
    from gguf import GGUFReader, GGUFValueType

    fields = {}
    for name, field in GGUFReader(gguf).fields.items():
        if not name.startswith("tokenizer."):
            continue
        values = [field.parts[i] for i in field.data]
        text = field.types[-1] == GGUFValueType.STRING
        items = [str(bytes(v), "utf-8") if text else v[0].item() for v in values]
        fields[name] = items if field.types[0] == GGUFValueType.ARRAY else items[0]
    return fields
