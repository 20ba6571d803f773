"""Where the weights of a decoder layer go in a wider layer that computes the same.

Knows single weights, not models. The wider layer's residual stream is the source's, followed by
zeros, and each source head sits in a wider head. What the source does not use is random, so that
the hardware multiplies real numbers, and one zero keeps it from having any effect:

- columns that read the zeros of the stream may hold anything;
- a head or an MLP unit without a source has a value (or an `up`) of zero; then its query, key and
  gate, and the columns of the output projection that read it, may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from eagle.bench.shapes import Shape

__all__ = ["Placement"]

_SPREAD = 0.02  # of random weights: what Llama models are initialised with


class Placement:
    """Writes one layer's weights into those of a wider layer, in place.

    Every method takes the wide weight, and the source's or None in a layer without a source.

    Args:
        source: configuration of the source, with the fields of `transformers.LlamaConfig`.
        shape: sizes of the wider layer.
        generator: of the random weights, on the device of all tensors.

    Attributes:
        parts: the methods by the name of the module that holds the weight in a Llama layer.
    """

    def __init__(self, source: Any, shape: Shape, generator: torch.Generator) -> None:
        self._generator = generator
        self._hidden, self._inner = source.hidden_size, source.intermediate_size
        # The mean of squares is over more entries, most of them zeros.
        self._shrink = (source.hidden_size / shape.hidden_size) ** 0.5
        # Likewise over the entries of a head.
        self._shrink_head = (source.head_dim / shape.head_dim) ** 0.5
        # Scores are divided by the root of the wider head's size.
        self._sharpen = (shape.head_dim / source.head_dim) ** 0.5
        self._place_heads(source, shape)
        self.parts: dict[str, Callable[[Tensor, Tensor | None], None]] = {
            "q_proj": self.query,
            "k_proj": self.key,
            "v_proj": self.value,
            "o_proj": self.output,
            "gate_proj": self.gate,
            "up_proj": self.up,
            "down_proj": self.down,
            "input_layernorm": self.norm,
            "post_attention_layernorm": self.norm,
        }

    def _place_heads(self, source: Any, shape: Shape) -> None:
        """Choose for every row of the source's projections a row of the wider ones."""
        device = self._generator.device
        size, half = source.head_dim, source.head_dim // 2
        # Pair j turns at the frequency base^(-2j / size), which is pair (j * wider) of the other.
        wider = shape.head_dim // size
        pair = torch.arange(half, device=device) * wider
        dims = torch.cat((pair, pair + shape.head_dim // 2))

        def rows(heads: Tensor) -> Tensor:
            return (heads[:, None] * shape.head_dim + dims).flatten()

        heads, kv_heads = source.num_attention_heads, source.num_key_value_heads
        reading, readers = heads // kv_heads, shape.heads // shape.kv_heads
        copies = shape.copies(heads, kv_heads)
        number = torch.arange(heads, device=device)
        kv, rank = number // reading, number % reading
        taken = (kv * copies + rank // readers) * readers + rank % readers
        self._entries = dims
        self._queries = rows(taken)
        self._taken = (
            taken[:, None] * shape.head_dim + torch.arange(shape.head_dim, device=device)
        ).flatten()
        filled = torch.arange(kv_heads * copies, device=device)
        self._keys = rows(filled)
        own = torch.arange(size, device=device)
        self._key_heads = torch.arange(kv_heads * copies * shape.head_dim, device=device)
        self._key_sources = ((filled // copies)[:, None] * size + own).flatten()
        # All query heads that read a filled key-value head, those without a source too.
        self._attended = rows(torch.arange(kv_heads * copies * readers, device=device))

    def random(self, wide: Tensor) -> None:
        """Fill a weight with random numbers."""
        wide.normal_(0, _SPREAD, generator=self._generator)

    def norm(self, wide: Tensor, source: Tensor | None) -> None:
        """Place the weight of a norm, ``[D]``."""
        wide.uniform_(0.5 * self._shrink, 1.5 * self._shrink, generator=self._generator)
        if source is not None:
            wide[: self._hidden] = source * self._shrink

    def query(self, wide: Tensor, source: Tensor | None) -> None:
        """Place the query projection, ``[heads * head_dim, D]``."""
        self.random(wide)
        if source is not None:
            wide[self._taken, : self._hidden] = 0
            wide[self._queries, : self._hidden] = source * self._sharpen

    def key(self, wide: Tensor, source: Tensor | None) -> None:
        """Place the key projection, ``[kv_heads * head_dim, D]``."""
        self.random(wide)
        if source is not None:
            wide[self._keys, : self._hidden] = source[self._key_sources]

    def bare_key(self, wide: Tensor, source: Tensor) -> None:
        """Place the key projection where keys are normed: a head holds nothing beside them."""
        self.random(wide)
        wide[self._key_heads, : self._hidden] = 0
        wide[self._keys, : self._hidden] = source[self._key_sources]

    def head_norm(self, wide: Tensor, source: Tensor, *, keys: bool) -> None:
        """Place the weight of a norm over the entries of a head, ``[head_dim]``.

        What is normed is larger by the root of how much wider a head is, queries and keys alike,
        and scores are divided by one such root more. So keys are made smaller by the other.
        """
        wide.uniform_(0.5, 1.5, generator=self._generator)
        wide[self._entries] = source * (self._shrink_head if keys else 1)

    def value(self, wide: Tensor, source: Tensor | None) -> None:
        """Place the value projection, ``[kv_heads * head_dim, D]``."""
        self.random(wide)
        wide[:, : self._hidden] = 0
        if source is not None:
            wide[self._keys, : self._hidden] = source[self._key_sources]

    def output(self, wide: Tensor, source: Tensor | None) -> None:
        """Place the output projection of the attention, ``[D, heads * head_dim]``."""
        self.random(wide)
        if source is not None:
            wide[:, self._attended] = 0
            wide[: self._hidden, self._queries] = source

    def gate(self, wide: Tensor, source: Tensor | None) -> None:
        """Place the gate projection of the MLP, ``[inner, D]``."""
        self.random(wide)
        if source is not None:
            wide[: self._inner, : self._hidden] = source

    def up(self, wide: Tensor, source: Tensor | None) -> None:
        """Place the up projection of the MLP, ``[inner, D]``."""
        self.random(wide)
        wide[:, : self._hidden] = 0
        if source is not None:
            wide[: self._inner, : self._hidden] = source

    def down(self, wide: Tensor, source: Tensor | None) -> None:
        """Place the down projection of the MLP, ``[D, inner]``."""
        self.random(wide)
        if source is not None:
            wide[:, : self._inner] = 0
            wide[: self._hidden, : self._inner] = source

    def embedding(self, wide: Tensor, source: Tensor) -> None:
        """Place the input embedding, ``[V, D]``: what it leaves zero stays zero in the stream."""
        wide.zero_()
        wide[:, : self._hidden] = source

    def readout(self, wide: Tensor, source: Tensor) -> None:
        """Place the LM head, ``[V, D]``."""
        self.random(wide)
        wide[:, : self._hidden] = source

    def fusion(self, wide: Tensor, source: Tensor) -> None:
        """Place what the FC of a draft head has for one of its inputs, ``[D, D]``."""
        self.random(wide)
        wide[:, : source.shape[1]] = 0
        wide[: self._hidden, : source.shape[1]] = source
