"""`eagle tree`: one cycle as text or picture; knows what is drawn, not how it was decoded."""

from eagle.cli.tree.command import EXAMPLES, tree

__all__ = ["EXAMPLES", "tree"]
