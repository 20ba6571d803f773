"""Public helpers for the authors of plug-ins: tiny models, and checks of every role's contract."""

from eagle.testing.capture import HostRead, assert_capturable, no_host_reads
from eagle.testing.contracts import (
    check_acceptance_rule,
    check_attention_backend,
    check_draft_head,
    check_feature_extractor,
    check_tree_builder,
)
from eagle.testing.drafters import RandomDrafter
from eagle.testing.exact_decoder import assert_decoder_lossless
from eagle.testing.exactness import assert_lossless
from eagle.testing.foreign import (
    Chain,
    ForeignRule,
    accepts_the_impossible,
    audit,
    output_distribution,
)
from eagle.testing.models import ARCHITECTURES, tiny_head, tiny_pair, tiny_target, tiny_text

__all__ = [
    "ARCHITECTURES",
    "Chain",
    "ForeignRule",
    "HostRead",
    "RandomDrafter",
    "accepts_the_impossible",
    "assert_capturable",
    "assert_decoder_lossless",
    "assert_lossless",
    "audit",
    "check_acceptance_rule",
    "check_attention_backend",
    "check_draft_head",
    "check_feature_extractor",
    "check_tree_builder",
    "no_host_reads",
    "output_distribution",
    "tiny_head",
    "tiny_pair",
    "tiny_target",
    "tiny_text",
]
