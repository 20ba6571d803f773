"""What a model's attention layers ask for, found by having the model call them once.

Configurations say it in many ways, and models ignore some of them: a window may be named and never
used, or used though it is switched off. So the masks are those that the model itself makes, and the
keyword arguments those that it passes. None of that depends on what linear layers return, so their
products, nearly all of a pass, are left out. Knows transformers' interfaces; knows no family by
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers.cache_utils import Cache

from eagle.errors import TargetError
from eagle.kernels import is_dense

__all__ = ["Asked", "Layers", "Recorder", "asking", "mask_asked", "window_of"]

See = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A mask as transformers writes it: of batch, head, query's position and key's position."""

_SERVED = {"s_aux": "sinks", "softcap": "softcap"}
# Nothing of these changes what attention gives to one text without padding: the mask has been made
# already, and positions are in queries and keys.
_HARMLESS = frozenset(
    [
        "cache_position",
        "cu_seq_lens_k",
        "cu_seq_lens_q",
        "is_causal",
        "max_length_k",
        "max_length_q",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "sliding_window",
        "use_cache",
    ]
)
_KEYS = 2**20  # positions, at most, of which a mask is asked whether they are seen
_LOOKED_AT = 2**23  # pairs of positions, likewise


@dataclass(frozen=True)
class Asked:
    """What one layer asks of attention.

    Attributes:
        window: positions that a token sees back, its own included, or None for all of them.
        modifiers: what it makes of scores: ``softcap``, ``sinks``.
        heads: those of its queries and of the keys that they attend to.
        keys: KV heads that it keeps, and numbers of one head's key.
        value: numbers of one head's value.
    """

    window: int | None
    modifiers: frozenset[str]
    heads: tuple[int, int]
    keys: tuple[int, int]
    value: int


@dataclass(frozen=True)
class Layers:
    """What the layers of a model ask of attention.

    Attributes:
        windows: one for each layer, or one alone where all have the same.
        modifiers: what a backend must serve, among ``window``, ``softcap`` and ``sinks``.
        heads: those of queries and of the keys that they attend to.
        keys: KV heads, and numbers of one head's key, as the cache gets them.
        value: numbers of one head's value.
    """

    windows: tuple[int | None, ...]
    modifiers: frozenset[str]
    heads: tuple[int, int]
    keys: tuple[int, int]
    value: int


class Recorder(Cache):  # type: ignore[misc]
    """Stands in for masks, cache and attention while a model is asked.

    Args:
        positions: how long texts may become.
    """

    def __init__(self, positions: int) -> None:
        super().__init__(layers=[])
        self._positions = positions
        self._masks: dict[int, tuple[Tensor, See]] = {}
        self._windows: dict[int, int | None] = {}
        self._asked: dict[int, Asked] = {}
        self._written: dict[int, tuple[tuple[int, int], int]] = {}

    def mask(self, see: See, queries: int, keys: int, device: Any) -> Tensor:
        """Return what stands for a mask until a layer is given it."""
        made = torch.ones(1, 1, queries, keys, dtype=torch.bool, device=device)
        self._masks[made.data_ptr()] = (made, see)
        return made

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Note the shapes of one layer's keys and values."""
        keys = (key_states.shape[1], key_states.shape[3])
        self._written[layer_idx] = (keys, value_states.shape[3])
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0, as the cache of passes does."""
        return 0

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        arguments: dict[str, Any],
    ) -> Tensor:
        """Note what one layer asks for, and return zeros."""
        layer = getattr(module, "layer_idx", None)
        if layer not in self._written:
            raise TargetError("a layer attends to keys and values that it did not write")
        if arguments.pop("dropout", 0):
            raise TargetError("attention drops weights at random")
        modifiers = set()
        for name, given in arguments.items():
            if given is None or name in _HARMLESS:
                continue
            if name not in _SERVED:
                raise TargetError(
                    f"its attention takes {name!r}, which no attention backend here is given"
                )
            modifiers.add(_SERVED[name])
        window = self._window(mask)
        keys, size = self._written[layer]
        heads = (query.shape[1], key.shape[1])
        asked = Asked(window, frozenset(modifiers), heads, keys, size)
        if self._asked.setdefault(layer, asked) != asked:
            raise TargetError(f"its layer {layer} attends in two ways")
        return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])

    def _window(self, mask: Any) -> int | None:
        given = self._masks.get(mask.data_ptr()) if isinstance(mask, Tensor) else None
        if given is None or mask.shape != given[0].shape:
            raise TargetError("its layers make attention masks of their own")
        made, see = given
        key = made.data_ptr()
        if key not in self._windows:
            try:
                self._windows[key] = window_of(see, self._positions, made.device)
            except (IndexError, RuntimeError, TypeError, ValueError) as error:
                raise TargetError("its attention mask depends on more than positions") from error
        return self._windows[key]

    def found(self, count: int) -> Layers:
        """Return what was found.

        Args:
            count: of the model's layers.

        Raises:
            TargetError: it is nothing that can be served.
        """
        found = self._asked
        if not found:
            raise TargetError("none of its layers takes its attention from transformers")
        shapes = {(asked.heads, asked.keys, asked.value) for asked in found.values()}
        if len(shapes) > 1:
            raise TargetError("its layers keep keys and values of several shapes, the cache of one")
        heads, keys, value = next(iter(shapes))
        if keys[1] != value:
            raise TargetError(
                f"its keys have {keys[1]} numbers a head and its values {value}, and the cache "
                "keeps both at one size"
            )
        windows = tuple(found[i].window if i in found else None for i in range(count))
        used = {asked.window for asked in found.values()}
        modifiers = frozenset().union(*(asked.modifiers for asked in found.values()))
        if used != {None}:
            modifiers |= {"window"}
        windows = tuple(used) if len(used) == 1 else windows
        return Layers(windows, modifiers, heads, keys, value)


def window_of(see: See, positions: int, device: torch.device) -> int | None:
    """Return the sliding window of a causal mask, or None where it has none.

    Args:
        see: the mask.
        positions: how many there are.
        device: where it is asked.

    Raises:
        TargetError: it is neither causal nor a sliding window.
    """
    zero = torch.zeros((), dtype=torch.int64, device=device)
    keys = torch.arange(min(positions, _KEYS), device=device)
    if positions > _KEYS:  # both ends, each longer than windows are
        keys = torch.cat((keys[: _KEYS // 2], keys[_KEYS // 2 :] + positions - _KEYS))

    def seen(query: int) -> Tensor:
        return see(zero, zero, zero + query, keys).expand(len(keys))

    window = int(seen(positions - 1).sum())
    queries = [positions - 1, 0, 1, positions // 2]
    # Around every multiple of the window, where chunks of that size would begin, and in between.
    for bound in range(window, positions, max(window, positions // 16, 1)):
        queries += [bound - 1, bound, bound + 1, bound + window // 2]
    many = max(16, _LOOKED_AT // len(keys))
    for query in [q for q in queries if 0 <= q < positions][:many]:
        expected = keys <= query
        if window < len(keys):
            expected &= keys > query - max(window, 1)
        if not torch.equal(seen(query), expected):
            raise TargetError(
                "its attention mask is neither causal nor a sliding window (chunks, perhaps, or "
                "both directions)"
            )
    return None if window == len(keys) else window


_current: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def asking(recorder: Recorder) -> Iterator[None]:
    """Let masks be those of a recorder for a while, and linear layers return zeros."""
    before = _current.set(recorder)
    try:
        with _WithoutProducts():
            yield
    finally:
        _current.reset(before)


class _WithoutProducts(TorchFunctionMode):
    """Zeros for the products with plain weights; others, whose shape may mislead, are made."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and is_dense(args[1]):
            x, weight = args[:2]
            return x.new_zeros(*x.shape[:-1], weight.shape[0])
        return func(*args, **(kwargs or {}))


def mask_asked(see: See, queries: int, keys: int, device: Any) -> Tensor | None:
    """Return the mask of the recorder that asks, or None where nobody does."""
    recorder = _current.get()
    return None if recorder is None else recorder.mask(see, queries, keys, device)
