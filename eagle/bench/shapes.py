"""The sizes of published models, as shapes to measure at; knows no weights and loads none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eagle.errors import RequestError, TargetError, nearest

__all__ = ["SHAPES", "Shape", "find_shape"]

_ROTARY = ("default", "linear", "llama3")  # kinds that treat every frequency by itself


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama-family model, its vocabulary left out: that is the embedded model's.

    Attributes:
        name: how users call it.
        hidden_size: width of the residual stream.
        layers: decoder layers.
        heads: query heads.
        kv_heads: heads of keys and values.
        head_dim: size of a head.
        intermediate_size: width of the MLP, or of each expert.
        experts: MLPs to choose from in each layer; 0 for a single one that is always used.
        experts_per_token: how many of them a token is sent through.
        tied: whether the LM head is the input embedding.
    """

    name: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    experts: int = 0
    experts_per_token: int = 0
    tied: bool = False

    def config(self, source: Any) -> Any:
        """Return the configuration of a model embedded in this shape.

        Rotary frequencies, vocabulary, longest text and special tokens stay the source's. The
        epsilon of its norms is scaled, since they then average over more entries.

        Args:
            source: configuration of the model to embed.

        Raises:
            TargetError: it is not of the Llama family, or does not fit.
        """
        from transformers import LlamaConfig, MixtralConfig

        self._check(source)
        values = {
            "vocab_size": source.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": source.rms_norm_eps * source.hidden_size / self.hidden_size,
            "rope_parameters": dict(source.rope_parameters),
            "max_position_embeddings": source.max_position_embeddings,
            "tie_word_embeddings": self.tied,
            "bos_token_id": source.bos_token_id,
            "eos_token_id": source.eos_token_id,
            "pad_token_id": source.pad_token_id,
        }
        if not self.experts:
            return LlamaConfig(**values)
        return MixtralConfig(
            **values,
            num_local_experts=self.experts,
            num_experts_per_tok=self.experts_per_token,
            sliding_window=None,
        )

    def _check(self, source: Any) -> None:
        rope = source.rope_parameters or {}
        plain = rope.get("rope_type", "default") in _ROTARY
        whole = rope.get("partial_rotary_factor", 1.0) == 1.0
        bias = getattr(source, "attention_bias", False) or getattr(source, "mlp_bias", False)
        if source.model_type != "llama" or bias or not (plain and whole):
            raise TargetError(
                f"a model of the kind {source.model_type!r} cannot be embedded in the "
                f"{self.name} shape; only Llama models without biases and with ordinary rotary "
                "positions can"
            )
        needed = source.num_key_value_heads * self.copies(
            source.num_attention_heads, source.num_key_value_heads
        )
        smaller = [
            f"{what} {theirs} in {ours}"
            for what, theirs, ours in (
                ("hidden size", source.hidden_size, self.hidden_size),
                ("layers", source.num_hidden_layers, self.layers),
                ("key-value heads", needed, self.kv_heads),
                ("MLP width", source.intermediate_size, self.intermediate_size),
            )
            if theirs > ours
        ]
        if self.head_dim % source.head_dim:
            smaller.append(f"head size {source.head_dim} in {self.head_dim} (not a multiple)")
        if smaller:
            raise TargetError(
                f"the model does not fit into the {self.name} shape: {', '.join(smaller)}"
            )

    def copies(self, heads: int, kv_heads: int) -> int:
        """Return how many of this shape's key-value heads each one of a source's takes.

        Args:
            heads: query heads of the source.
            kv_heads: its key-value heads.
        """
        return -(-(heads // kv_heads) // (self.heads // self.kv_heads))


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama2-7b", 4096, 32, 32, 32, 128, 11008),
        Shape("llama2-13b", 5120, 40, 40, 40, 128, 13824),
        Shape("llama2-70b", 8192, 80, 64, 8, 128, 28672),
        Shape("vicuna-33b", 6656, 60, 52, 52, 128, 17920),
        Shape("llama3-8b", 4096, 32, 32, 8, 128, 14336),
        Shape("mixtral-8x7b", 4096, 32, 32, 8, 128, 14336, experts=8, experts_per_token=2),
    )
}
"""The shapes that ``--shape`` knows, from the models' published configurations."""


def find_shape(name: str) -> Shape:
    """Return the shape of that name.

    Raises:
        RequestError: there is none; the message lists those there are.
    """
    if name not in SHAPES:
        raise RequestError(
            f"--shape: no shape is called {name!r}; there is {', '.join(SHAPES)}."
            f"{nearest(name, SHAPES)}"
        )
    return SHAPES[name]
