import numpy as np
import pytest

from eagle.testing import tiny_target
from eagle.train.data.corpus import Corpus
from eagle.train.data.template import Text


@pytest.fixture(scope="session")
def target():
    return tiny_target("llama-gqa")


def _corpus(conversations=40, seed=0, vocab=64):
    """Conversations of a question and an answer, ending with token 2; tokens count upwards."""
    rng = np.random.default_rng(seed)
    texts = []
    for number in range(conversations):
        length = int(rng.integers(12, 40))
        tokens = (rng.integers(3, vocab) + np.arange(length)) % (vocab - 3) + 3
        tokens[-1] = 2
        answers = np.arange(length) >= 4
        texts.append(Text(f"talk{number}_0", tokens, answers))
    return Corpus.of(texts, vocab, {"tokenizer": "none"})


@pytest.fixture(scope="session")
def make_corpus():
    return _corpus


@pytest.fixture
def corpus():
    return _corpus()
