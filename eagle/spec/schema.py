"""What a decoder spec may say, as pydantic models and as JSON Schema; builds nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    field_validator,
    model_validator,
)

from eagle.errors import clipped
from eagle.plugin import ROLE_TITLES, ROLES, ComponentSpec, Registered, Registry, Role
from eagle.spec.document import Document

__all__ = [
    "DEFAULT_STRATEGIES",
    "ComponentSpec",
    "DecoderSpec",
    "RuntimeSpec",
    "TargetSpec",
    "json_schema",
]

DEFAULT_STRATEGIES = {
    Role.FEATURES: "last-hidden",
    Role.HEAD: "eagle",
    Role.TREE: "static",
    Role.ATTENTION: "auto",
    Role.ACCEPTANCE: "speculative",
}
"""The strategy of each role that a spec does not mention."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_LAST_DEVICE = 127  # PyTorch keeps the index in a byte

DeviceMap = (
    Literal["auto", "balanced", "balanced_low_0", "sequential"]
    | Annotated[dict[str, int | str], Field(min_length=1)]
)


class TargetSpec(_Model):
    """The target model.

    Attributes:
        model: the embedded model's name, a Hub id, a folder, or a GGUF file.
        dtype: of weights, features and caches; ``auto`` chooses for the device.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        revision: of a Hub model.
        generation_config: ``apply`` what the model's generation_config does to every text
            (repetition penalties, suppressed tokens and the like), as transformers' `generate`
            does, or ``ignore`` it. End tokens are always taken from it, sampling defaults never.
        device_map: in training only: spread the target's layers over the devices that the one
            process sees, as transformers' `from_pretrained` does: ``auto``, ``balanced``,
            ``balanced_low_0``, ``sequential``, or a mapping of modules to devices.
        tp_plan: ``auto`` cuts every layer of the target over all processes that `torchrun` has
            started, by the model's own plan in transformers for tensor parallelism.
        cut_draft: whether those processes hold a part of the draft head each, too, if its modules
            can be cut, or all of it (``false``); ``auto``: a part of one that is large.
        adapter: the folder of a PEFT adapter, merged into the weights when they are loaded.
        trust_remote_code: run Python code that comes with the model, which can do whatever the
            user can. Nobody is ever asked: without this such a model is refused.
    """

    model: Annotated[str, Field(min_length=1)] = "smollm2-135m-instruct"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    revision: str | None = None
    generation_config: Literal["apply", "ignore"] = "apply"
    device_map: DeviceMap | None = None
    tp_plan: Literal["auto"] | None = None
    cut_draft: Literal["auto"] | bool = "auto"
    adapter: Annotated[str, Field(min_length=1)] | None = None
    trust_remote_code: bool = False

    @property
    def spread(self) -> bool:
        """Whether it asks for several devices."""
        return self.device_map is not None or self.tp_plan is not None

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        index = re.fullmatch("cuda:(0|[1-9][0-9]{0,2})", device)
        if device not in ("auto", "cpu", "cuda") and not (index and int(index[1]) <= _LAST_DEVICE):
            last = f" of at most {_LAST_DEVICE}" if device.startswith("cuda:") else ""
            raise ValueError(f"should be auto, cpu, cuda or cuda:N{last}, not {clipped(device)!r}")
        return device

    @model_validator(mode="after")
    def _one_way_of_spreading(self) -> TargetSpec:
        if self.device_map is not None and self.tp_plan is not None:
            raise ValueError(
                "should have a device_map (one process, its layers on several devices) or a "
                "tp_plan (one process for each device, every layer cut), not both"
            )
        if self.cut_draft is True and self.tp_plan is None:
            raise ValueError(
                "should have a tp_plan with cut_draft: true, which is for processes that hold the "
                "target together"
            )
        if self.spread and self.adapter is not None:
            raise ValueError(
                "should have no adapter with a device_map or a tp_plan: it is merged into whole "
                "weights on one device; merge it once (peft's merge_and_unload) and give the result"
            )
        if self.spread and self.device != "auto":
            raise ValueError(
                f"device should stay 'auto', not {self.device!r}, with a device_map or a tp_plan, "
                "which say what is where"
            )
        return self


class RuntimeSpec(_Model):
    """How cycles are executed, and how much is allocated for them.

    Attributes:
        compile: on a GPU, compile a cycle's phases; ``auto``: where cycles are captured, which
            ``eagle generate`` takes for False where there are few tokens to decode. ``layers``:
            the target's pass as one layer's code for all of them, which takes a fraction of the
            time to compile; ``auto`` does so with large targets. On a CPU, run the target's pass as
            compiled code; ``auto``: where ``eagle compile`` made it; True: make it at first use,
            and so does ``layers``.
        cuda_graph: capture whole cycles as CUDA graphs and replay them; ``auto``: on CUDA, where
            every component allows it.
        max_batch: slots, the most requests decoded at once; ``auto``: as many texts of 1,024
            tokens as there is free memory for, up to 256, and 8 on a CPU.
        max_length: longest text of a slot, prompt and answer, in tokens; ``auto`` follows the
            requests up to what the target was made for.
        quantize: ``int8`` or ``int4``: quantize the linear layers of a plain checkpoint when it is
            loaded, by torchao, their weights alone. The target is that quantized model then.
    """

    compile: bool | Literal["auto", "layers"] = "auto"
    cuda_graph: bool | Literal["auto"] = "auto"
    max_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = 8
    max_length: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    quantize: Literal["int8", "int4"] | None = None

    def capacity(self, served: int) -> int:
        """Return the longest text of a slot, where the target serves at most *served* tokens."""
        return served if self.max_length == "auto" else min(self.max_length, served)


class DecoderSpec(_Model):
    """Everything that a decoder is made of; `load_spec` reads one from YAML.

    In Python a component is given as in YAML: ``DecoderSpec(tree={"name": "chain", "depth": 3})``.
    """

    name: str = ""
    description: str = ""
    target: TargetSpec = TargetSpec()
    features: ComponentSpec = ComponentSpec(name=DEFAULT_STRATEGIES[Role.FEATURES])
    head: ComponentSpec = ComponentSpec(name=DEFAULT_STRATEGIES[Role.HEAD])
    tree: ComponentSpec = ComponentSpec(name=DEFAULT_STRATEGIES[Role.TREE])
    attention: ComponentSpec = ComponentSpec(name=DEFAULT_STRATEGIES[Role.ATTENTION])
    acceptance: ComponentSpec = ComponentSpec(name=DEFAULT_STRATEGIES[Role.ACCEPTANCE])
    runtime: RuntimeSpec = RuntimeSpec()

    @model_validator(mode="after")
    def _quantizes_whole_weights(self) -> DecoderSpec:
        if self.target.tp_plan is not None and self.runtime.quantize is not None:
            raise ValueError(
                "runtime.quantize should be left out with target.tp_plan: weights are quantized "
                "whole, and cut before that; give a target of more processes, or quantize alone"
            )
        return self

    _document: Document = PrivateAttr(default_factory=lambda: Document("spec"))

    @field_validator("target")
    @classmethod
    def _decodes_without_a_map(cls, target: TargetSpec) -> TargetSpec:
        if target.device_map is not None:
            raise ValueError(
                "should have no device_map: a cycle, its caches and its draft head are on one "
                "device; target.tp_plan: auto decodes on several, and `eagle train` alone takes a "
                "device_map"
            )
        return target

    def __eq__(self, other: object) -> bool:
        # Pydantic would compare `_document` too; where a spec was written does not matter.
        return isinstance(other, DecoderSpec) and self.model_dump() == other.model_dump()

    @property
    def document(self) -> Document:
        """Where the spec was written, for messages."""
        return self._document

    @property
    def folder(self) -> Path:
        """Folder of the spec's file, or the current one; relative paths in the spec start here."""
        return self._document.folder

    def labelled(self, label: str) -> DecoderSpec:
        """Return the same spec, of which messages say that it is from somewhere else."""
        other = self.model_copy()
        other._document = Document(label, folder=self.folder)
        return other

    def component(self, role: Role) -> ComponentSpec:
        """Return what the spec says about one role."""
        component: ComponentSpec = getattr(self, role.value)
        return component


def json_schema(registry: Registry) -> dict[str, Any]:
    """Return a JSON Schema of decoder specs, with the settings of every registered strategy.

    Args:
        registry: the strategies to describe.
    """
    schema = DecoderSpec.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    definitions.pop("ComponentSpec", None)
    for role in ROLES:
        known = registry.strategies(role)
        named = {"enum": [entry.name for entry in known], "description": "A strategy's name."}
        choices = [named, *(_choice(entry, definitions) for entry in known)]
        schema["properties"][role.value] = {
            "description": f"The {ROLE_TITLES[role]}: a name, or a mapping of name and settings.",
            "default": DEFAULT_STRATEGIES[role],
            "oneOf": choices,
        }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "EAGLE decoder spec",
    }


def _choice(entry: Registered, definitions: dict[str, Any]) -> dict[str, Any]:
    prefix = f"{entry.role.value}.{entry.name}."
    try:
        config = entry.strategy.config.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
    except Exception:  # a plug-in's field without a JSON form must not cost the others theirs
        config = {"properties": {}, "additionalProperties": True}
    definitions.update({prefix + name: part for name, part in config.pop("$defs", {}).items()})
    return {
        "type": "object",
        "title": entry.name,
        "description": entry.strategy.description,
        "properties": {"name": {"const": entry.name}, **config.get("properties", {})},
        "required": ["name", *config.get("required", [])],
        "additionalProperties": config.get("additionalProperties", False),
    }
