"""`eagle train`; knows options and how a run is told of, and trains nothing itself."""

from eagle.cli.train.commands import app

__all__ = ["app"]
