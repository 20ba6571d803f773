"""`eagle verify` and its verdicts; knows options and words, and tests nothing itself."""

from eagle.cli.verify.command import EXAMPLES, verify

__all__ = ["EXAMPLES", "verify"]
