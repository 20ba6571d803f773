"""From YAML to checked settings to built components; loads no weights."""

from eagle.spec.building import resolve
from eagle.spec.compatibility import NONE, follow_layers
from eagle.spec.components import Declared, built, declared
from eagle.spec.document import Document, dump, read_value
from eagle.spec.files import load_spec, shipped_specs
from eagle.spec.resolved import Resolved
from eagle.spec.schema import (
    DEFAULT_STRATEGIES,
    ComponentSpec,
    DecoderSpec,
    RuntimeSpec,
    TargetSpec,
    json_schema,
)

__all__ = [
    "DEFAULT_STRATEGIES",
    "NONE",
    "ComponentSpec",
    "Declared",
    "DecoderSpec",
    "Document",
    "Resolved",
    "RuntimeSpec",
    "TargetSpec",
    "built",
    "declared",
    "dump",
    "follow_layers",
    "json_schema",
    "load_spec",
    "read_value",
    "resolve",
    "shipped_specs",
]
