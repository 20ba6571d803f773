"""Building blocks for authors of draft heads: networks over a cache, and checkpoints.

It knows the contract, `eagle.plugin`, which exports all of this too; it knows no head.
"""

from eagle.plugin.blocks.heads.architecture import llama_config
from eagle.plugin.blocks.heads.base import (
    AttentionHeads,
    DecoderHead,
    HeadNetwork,
    draw_weights,
    fresh_config,
    saved_config,
)
from eagle.plugin.blocks.heads.checkpoint import (
    EMBEDDING,
    LM_HEAD,
    HeadFiles,
    find_checkpoint,
    read_weights,
    weights_of,
    write_checkpoint,
)
from eagle.plugin.blocks.heads.layer import Attend, LlamaAttention, LlamaMLP, normed, rotated
from eagle.plugin.blocks.heads.pairs import FCNorms, JoinsFeatures, PairLayer
from eagle.plugin.blocks.heads.shared import (
    check_limit,
    check_shared,
    check_verifier,
    own_embedding,
)
from eagle.plugin.blocks.heads.tensors import (
    MAP_DTYPES,
    Stored,
    read_json,
    read_tensors,
    stored_in,
)
from eagle.plugin.blocks.heads.vocabulary import (
    VOCABULARY_MAPS,
    maps_of,
    most_frequent,
    stored_vocabulary,
)

__all__ = [
    "EMBEDDING",
    "LM_HEAD",
    "MAP_DTYPES",
    "VOCABULARY_MAPS",
    "Attend",
    "AttentionHeads",
    "DecoderHead",
    "FCNorms",
    "HeadFiles",
    "HeadNetwork",
    "JoinsFeatures",
    "LlamaAttention",
    "LlamaMLP",
    "PairLayer",
    "Stored",
    "check_limit",
    "check_shared",
    "check_verifier",
    "draw_weights",
    "find_checkpoint",
    "fresh_config",
    "llama_config",
    "maps_of",
    "most_frequent",
    "normed",
    "own_embedding",
    "read_json",
    "read_tensors",
    "read_weights",
    "rotated",
    "saved_config",
    "stored_in",
    "stored_vocabulary",
    "weights_of",
    "write_checkpoint",
]
