"""`eagle data`: conversations made and packed for training; knows options, no text."""

from eagle.cli.data.commands import app

__all__ = ["app"]
