"""What a cache holds, slot by slot, wherever its rows lie."""

import torch

from eagle.cache.store import BLOCK


def by_slot(cache):
    """Return copies of keys and values of every layer, ``[slots, kv_heads, rows, head_dim]``."""
    if cache.pages is None:
        return [store.clone() for store in (*cache.keys, *cache.values)]
    place = cache.pages.table.long()[..., None] * BLOCK + torch.arange(BLOCK)
    return [store[:, place.flatten(1)].transpose(0, 1) for store in cache.stores]
