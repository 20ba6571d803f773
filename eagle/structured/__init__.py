"""Answers that follow a grammar: logits processors that hold at every node of a tree; knows no
cycle. It needs the extra ``structured`` (llguidance).
"""

from eagle.structured.grammars import grammar, json_object, json_schema, regex
from eagle.structured.matching import Grammar

__all__ = ["Grammar", "grammar", "json_object", "json_schema", "regex"]
