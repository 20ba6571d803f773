"""Files that the library fetches once: the embedded model and its training text.

It knows where they come from and where they are kept, not what they are used for. Everything is
placed atomically in one cache folder, checked against a digest, and never fetched twice; once it
is there, no network is needed.
"""

from eagle.assets.cache import (
    cache_dir,
    exclusive,
    full_disk,
    notify,
    readable_disk_errors,
    staging,
)
from eagle.assets.convert import gguf_options
from eagle.assets.obtain import dataset_file, model_folder
from eagle.assets.table import ASSETS, DATASETS, MODELS, Asset

__all__ = [
    "ASSETS",
    "DATASETS",
    "MODELS",
    "Asset",
    "cache_dir",
    "dataset_file",
    "exclusive",
    "full_disk",
    "gguf_options",
    "model_folder",
    "notify",
    "readable_disk_errors",
    "staging",
]
