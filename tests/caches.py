"""What a cache holds, slot by slot, wherever its rows lie, and what is read into it."""

import torch

from eagle.cache.store import BLOCK


def by_slot(cache):
    """Return copies of keys and values of every layer, ``[slots, kv_heads, rows, head_dim]``."""
    if cache.pages is None:
        return [store.clone() for store in (*cache.keys, *cache.values)]
    place = cache.pages.table.long()[..., None] * BLOCK + torch.arange(BLOCK)
    return [store[:, place.flatten(1)].transpose(0, 1) for store in cache.stores]


def noted_pieces(decoder, monkeypatch):
    """Return a list that takes in every piece of a prompt that a decoder reads from now on."""
    read, original = [], decoder._runtime.read

    def noted(slots, pieces, *args):
        read.extend(pieces)
        return original(slots, pieces, *args)

    monkeypatch.setattr(decoder._runtime, "read", noted)
    return read
