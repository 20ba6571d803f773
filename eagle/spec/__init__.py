"""From YAML to checked settings to built components; loads no weights."""

from eagle.spec.building import NONE, Resolved, load_spec, resolve, shipped_specs
from eagle.spec.document import Document, dump
from eagle.spec.problems import explain, explain_value
from eagle.spec.schema import ComponentSpec, DecoderSpec, RuntimeSpec, TargetSpec, json_schema

__all__ = [
    "NONE",
    "ComponentSpec",
    "DecoderSpec",
    "Document",
    "Resolved",
    "RuntimeSpec",
    "TargetSpec",
    "dump",
    "explain",
    "explain_value",
    "json_schema",
    "load_spec",
    "resolve",
    "shipped_specs",
]
