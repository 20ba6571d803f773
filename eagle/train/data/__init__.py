"""From files to batches of tokens, and which of them count; knows no head."""

from eagle.train.data.corpus import Corpus, is_packed
from eagle.train.data.fingerprints import fingerprint
from eagle.train.data.packing import Batch, Packer, visibility
from eagle.train.data.prepare import check_text, load_corpus, lost, make_corpus
from eagle.train.data.regeneration import Report, regenerate
from eagle.train.data.sources import Conversation, Passage, read_sources
from eagle.train.data.talks import Talk, talks_of

__all__ = [
    "Batch",
    "Conversation",
    "Corpus",
    "Packer",
    "Passage",
    "Report",
    "Talk",
    "check_text",
    "fingerprint",
    "is_packed",
    "load_corpus",
    "lost",
    "make_corpus",
    "read_sources",
    "regenerate",
    "talks_of",
    "visibility",
]
