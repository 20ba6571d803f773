"""A head's files as other engines read them: names and configurations change, no number does.

Works on files alone: neither a target nor a network is needed. What an engine's class would ignore
or take otherwise is refused. Sources: vllm-project/vllm ``model_executor/models/llama_eagle.py``,
``llama_eagle3.py``; sgl-project/sglang ``python/sglang/srt/models/llama_eagle.py``,
``llama_eagle3.py``; vllm-project/speculators ``src/speculators/models/eagle3/config.py``.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from torch import Tensor

from eagle.plugin import (
    MAP_DTYPES,
    VOCABULARY_MAPS,
    CheckpointError,
    TargetInfo,
    read_tensors,
    saved_config,
    stored_in,
    weights_of,
    write_checkpoint,
)
from eagle_plugins.heads.layouts import Layout, identify
from eagle_plugins.heads.variants import Variant, read_variant

__all__ = ["ENGINES", "NORMS", "export_head", "variant_config"]

NORMS = ("embedding_layernorm.weight", "hidden_states_layernorm.weight")
"""In front of the FC of HASS's heads."""

_FC = "fc.weight"  # what every head has that is written here
_FILES = ("config.json", "*.safetensors", "*.bin", "*.index.json")

ENGINES = ("vllm", "sglang", "speculators", "eagle")


def export_head(
    folder: Path, engine: str, out: Path, target: TargetInfo, chosen: Variant | None = None
) -> str:
    """Write a head for an engine.

    Args:
        folder: of the head, in any layout that is read.
        engine: one of `ENGINES`.
        out: where to write.
        target: the target; the engine loads it by its name.
        chosen: what a head of EAGLE-3 is taken for, where settings say otherwise than its files.

    Returns:
        The command that serves it.

    Raises:
        CheckpointError: it is no head that is read, or one that the engine does not serve; or what
            is in the folder to write to is no head, a target's weights say.
    """
    if engine not in ENGINES:
        raise CheckpointError(f"no engine {engine!r} is known; known: {', '.join(ENGINES)}")
    if out.resolve() == folder.resolve():
        raise CheckpointError(f"{out} is the head's own folder; give another one to write to")
    _check_place(out)
    layout = identify(folder)
    if layout.method == "eagle":
        config, tensors = _eagle(layout, engine)
    else:
        layout.require("eagle3")
        variant, layout = read_variant(layout)
        config, tensors = _eagle3(chosen or variant, layout, engine, target)
    config["dtype"] = str(tensors[_FC].dtype).removeprefix("torch.")
    write_checkpoint(out, config, tensors)
    return _command(layout.method, engine, out, target.name)


def _check_place(out: Path) -> None:
    """Refuse a folder with another model's files, which would be replaced.

    Raises:
        CheckpointError: it has a configuration or weights, and these are no head's.
    """
    if not any(found for kind in _FILES for found in out.glob(kind)):
        return
    try:
        held = stored_in(out)
    except CheckpointError:
        held = {}
    if not held.keys() & {_FC, f"model.{_FC}"}:
        raise CheckpointError(
            f"{out} holds the files of something else than a draft head, which would be replaced; "
            "give another folder to write to"
        )


def variant_config(variant: Variant, layers: tuple[int, ...]) -> dict[str, Any]:
    """Return the configuration of an EAGLE-3 head, with all that may be left out in it said."""
    return saved_config(variant.config) | {
        "architectures": ["LlamaForCausalLM"],
        "draft_vocab_size": variant.draft_vocab,
        "num_hidden_layers": 1,
        "target_hidden_size": variant.target_size,
        "tie_word_embeddings": False,
        "eagle_aux_hidden_state_layer_ids": list(layers),
        # Of layers whose output is taken, as SGLang counts them.
        "eagle_config": {
            "eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in layers],
            "use_aux_hidden_state": True,
        },
        "norm_before_residual": variant.norm_before_residual,
        "norm_before_fc": variant.norms == "joined",
        "fc_norm": variant.norms == "each",
        "norm_output": variant.feed_back == "after-norm",
        "feed_back": variant.feed_back,
    }


def _eagle(layout: Layout, engine: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, tensors = dict(layout.config), read_tensors(weights_of(layout))
    if config.get("draft_kind"):
        raise _unserved(layout, engine, f"it is an ablation, of the kind {config['draft_kind']!r}")
    if engine == "speculators":
        raise _unserved(layout, engine, "its EAGLE-1 has another FC; heads of EAGLE-3 are written")
    if engine == "vllm" and "fc.bias" in tensors:
        raise _unserved(layout, engine, "its class has no fc.bias, which this head has")
    config["architectures"] = [
        "LlamaForCausalLMEagle" if engine == "sglang" else "LlamaForCausalLM"
    ]
    config["bias"] = "fc.bias" in tensors
    return config, tensors


def _eagle3(
    variant: Variant, layout: Layout, engine: str, target: TargetInfo
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    maps = {name: layout.tensors[name] for name in VOCABULARY_MAPS if name in layout.tensors}
    tensors = read_tensors(weights_of(layout, VOCABULARY_MAPS)) | read_tensors(maps, MAP_DTYPES)
    config = variant_config(variant, variant.layers_of(target))
    if layout.config.get("embed_requires_grad") is True:
        config["embed_requires_grad"] = True
    if engine == "sglang" and (
        variant.norms != "none"
        or variant.norm_before_residual
        or variant.feed_back != "before-norm"
    ):
        raise _unserved(
            layout, engine, "its class has neither norms in front of the FC nor those of EAGLE-3.1"
        )
    if engine == "speculators" and not variant.own_lm_head:
        raise _unserved(
            layout, engine, "its class has an LM head of its own, which this head lacks"
        )
    if engine == "sglang" and not variant.own_lm_head:
        del config["draft_vocab_size"]  # what tells its class to read the target's LM head
    if engine in ("vllm", "sglang"):
        config["architectures"] = ["LlamaForCausalLMEagle3"]
    if engine == "speculators":
        tensors = {name.replace("midlayer.", "layers.0."): t for name, t in tensors.items()}
        config = _speculators(config, target.name)
    return config, tensors


def _speculators(config: dict[str, Any], target: str) -> dict[str, Any]:
    own = (
        "draft_vocab_size", "target_hidden_size", "eagle_aux_hidden_state_layer_ids",
        "norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "feed_back",
        "embed_requires_grad",
    )  # fmt: skip
    apart = (*own, "eagle_config", "architectures")
    inner = {key: value for key, value in config.items() if key not in apart}
    return {key: config[key] for key in own if key in config} | {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.5.0",
        "transformer_layer_config": inner,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": 3,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "verifier": {"name_or_path": target, "architectures": ["LlamaForCausalLM"]},
        },
    }


def _unserved(layout: Layout, engine: str, why: str) -> CheckpointError:
    return CheckpointError(f"the draft head in {layout.folder} is not served by {engine}: {why}")


def _command(method: str, engine: str, out: Path, target: str) -> str:
    """Return the command that serves a head, as a shell takes it, whatever paths hold."""
    if engine == "eagle":
        words = [f"target.model={target}", f"head.weights={out}"]
        return 'eagle generate "..."' + "".join(f" --set {shlex.quote(word)}" for word in words)
    if engine == "sglang":
        return (
            f"python -m sglang.launch_server --model-path {shlex.quote(target)} "
            f"--speculative-algorithm {'EAGLE3' if method == 'eagle3' else 'EAGLE'} "
            f"--speculative-draft-model-path {shlex.quote(str(out))} "
            "--speculative-num-steps 3 --speculative-eagle-topk 4 "
            "--speculative-num-draft-tokens 16"
        )
    settings = {"method": method, "model": str(out), "num_speculative_tokens": 3}
    return (
        f"vllm serve {shlex.quote(target)} --speculative-config {shlex.quote(json.dumps(settings))}"
    )
