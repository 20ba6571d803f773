"""`eagle bench` and its tables; knows options and words, and measures nothing itself."""

from eagle.cli.bench.commands import app

__all__ = ["app"]
