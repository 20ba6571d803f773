"""The two places where this library meets a transformers model: its attention and its cache.

Nothing of the model is copied or patched: the attention is registered by name, and gets the
backend and its plan through keyword arguments of `forward`; the cache is a `Cache` whose `update`
writes to the rows that the current pass names.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache
from transformers.masking_utils import AttentionMaskInterface

from eagle.cache import Step, TreeCache
from eagle.plugin import AttentionBackend, Scores
from eagle.target.attention_calls import Recorder, mask_asked

__all__ = ["ATTENTION", "OutsideError", "PassCache"]

ATTENTION = "eagle"


class OutsideError(RuntimeError):
    """This attention was called by no pass of a target."""


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    eagle_backend: AttentionBackend | None = None,
    eagle_plans: tuple[Any, ...] = (),
    eagle_recorder: Recorder | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend through the backend of the pass that `Target.forward` started.

    There is one plan, or one for each layer. What arrives beside is what
    `eagle.target.attention_calls` let pass.
    """
    if eagle_recorder is not None:
        kwargs |= {"softcap": softcap, "s_aux": s_aux}
        out = eagle_recorder.attend(module, query, key, value, attention_mask, kwargs)
        return out, None
    if eagle_backend is None:
        raise OutsideError(
            "this model's attention is set to 'eagle', which works inside a decoder only; "
            "call model.set_attn_implementation('sdpa') to use the model by itself"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    plan = eagle_plans[0 if len(eagle_plans) == 1 else module.layer_idx]
    # A backend that does not take them was refused when the target was probed.
    options: dict[str, Any] = {}
    if softcap is not None or s_aux is not None:
        options["scores"] = Scores(softcap, s_aux)
    out = eagle_backend.attend(query, key, value, plan, scaling, **options)
    return out.contiguous(), None  # some models look at it as `[B, N, heads * head_dim]`


def _mask(
    *, q_length: int, kv_length: int, mask_function: Any, device: Any = "cpu", **kwargs: Any
) -> Tensor | None:
    """Make no mask: the backend's plan says who sees whom, and there is never any padding."""
    return mask_asked(mask_function, q_length, kv_length, device)


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)


class PassCache(Cache):  # type: ignore[misc]
    """A transformers cache that forwards to a `TreeCache` at the rows of the current step.

    Attributes:
        store: the cache.
        step: of the current pass, located in the cache; None between passes.
    """

    def __init__(self, store: TreeCache) -> None:
        super().__init__(layers=[])
        self.store = store
        self.step: Step | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values; return what may be read of it."""
        if self.step is None:
            raise RuntimeError("the cache was used outside a pass of its target")
        return self.store.write(layer_idx, key_states, value_states, self.step)

    def of_layer(self, layer: int) -> LayerCache:
        """Return the part of one layer, which writes there whatever the layer says it is."""
        made = LayerCache(self.store.of_layer(layer))
        made.step = self.step
        return made

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are always given, never derived from the cache."""
        return 0


class LayerCache(PassCache):
    """A cache of one layer, which does not ask for its number."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """See `PassCache.update`."""
        return super().update(key_states, value_states, 0)
