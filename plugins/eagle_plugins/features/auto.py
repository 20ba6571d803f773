"""What the head asks for: the layers that it names, or the last hidden state if it names none."""

from __future__ import annotations

from eagle.plugin import BuildContext
from eagle_plugins.features.last_hidden import LastHidden
from eagle_plugins.features.layers import Layers, LayersConfig

__all__ = ["Asked"]


class Asked(LastHidden):
    """Passes on the last hidden state, unless the head names layers."""

    def following(self, layers: tuple[int, ...]) -> Layers:
        """Return the extractor of a head's layers."""
        return Layers(LayersConfig(layers=layers), BuildContext())
