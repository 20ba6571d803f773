"""A transformers model behind a cache: passes, features, logits; knows nothing of drafting or
acceptance.
"""

from eagle.target import cutting, experts, loading, quantizing
from eagle.target.attention_calls import Layers
from eagle.target.causal_lm import Forward, Target
from eagle.target.from_spec import load_target, meet
from eagle.target.interfaces import PassCache
from eagle.target.placement import device_of, resolve_device, resolve_dtype
from eagle.target.templating import template_text, template_tokens
from eagle.target.together import Captured, News, Together
from eagle.target.tokens import is_core

__all__ = [
    "Captured",
    "Forward",
    "Layers",
    "News",
    "PassCache",
    "Target",
    "Together",
    "cutting",
    "device_of",
    "experts",
    "is_core",
    "load_target",
    "loading",
    "meet",
    "quantizing",
    "resolve_device",
    "resolve_dtype",
    "template_text",
    "template_tokens",
]
