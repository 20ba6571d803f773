import numpy as np
import pytest
import torch

from eagle.errors import DataError
from eagle.train.data.packing import Packer, visibility


def packer(corpus, length=16, batch=2, chunk=1, seed=0, documents=None):
    documents = np.arange(len(corpus.ends)) if documents is None else documents
    return Packer(corpus, documents, length=length, batch=batch, chunk=chunk, seed=seed)


def spans(corpus):
    return [corpus.text(i)[0].tolist() for i in range(len(corpus.ends))]


def test_every_row_is_made_of_pieces_of_conversations(corpus):
    texts = spans(corpus)
    batch = packer(corpus)(3)
    for tokens, documents in zip(batch.tokens.tolist(), batch.documents.tolist(), strict=True):
        for document in set(documents):
            piece = [t for t, d in zip(tokens, documents, strict=True) if d == document]
            assert any(
                text[i : i + len(piece)] == piece
                for text in texts
                for i in range(len(text) - len(piece) + 1)
            )


def test_one_epoch_uses_every_token_once_but_for_the_remainder(corpus):
    make = packer(corpus, batch=1)
    seen = torch.cat([make(step).tokens.flatten() for step in range(make.rows)])
    counts = np.bincount(seen.numpy(), minlength=64)
    whole = np.bincount(corpus.tokens, minlength=64)
    assert (counts <= whole).all()
    assert whole.sum() - counts.sum() < 16


def test_positions_restart_with_every_conversation(corpus):
    batch = packer(corpus)(0)
    new = batch.documents[:, 1:] != batch.documents[:, :-1]
    assert (batch.positions[:, 0] == 0).all()
    assert torch.equal(batch.positions[:, 1:] == 0, new)
    assert ((batch.positions[:, 1:] == batch.positions[:, :-1] + 1) | new).all()


def test_nothing_is_seen_across_conversations_or_ahead(corpus):
    batch = packer(corpus)(0)
    visible = visibility(batch.documents)[:, 0]
    for b, row in enumerate(batch.documents.tolist()):
        for i, own in enumerate(row):
            for j, other in enumerate(row):
                assert bool(visible[b, i, j]) == (own == other and j <= i)


def test_entries_predict_features_whose_next_token_is_the_answers_too(corpus):
    batch = packer(corpus, length=32, batch=1)(0)
    tokens, documents = batch.tokens[0].tolist(), batch.documents[0].tolist()
    chosen = set(batch.entries[batch.weights > 0].tolist())
    assert batch.count == len(chosen) > 0
    assert 31 not in chosen
    for entry in chosen:
        assert documents[entry] == documents[entry + 1]
        assert tokens[entry + 1] != 2  # nothing is drafted behind the end of an answer
    ends = [i for i, token in enumerate(tokens) if token == 2]
    # The entry that predicts the end itself counts.
    assert all(end - 2 in chosen for end in ends if end >= 6)


def test_entries_start_with_the_first_token_of_the_answer(make_corpus):
    corpus = make_corpus(1)
    length = len(corpus.tokens)
    batch = packer(corpus, length=length, batch=1)(0)
    assert batch.entries.tolist() == list(range(3, length - 2))


def test_entries_are_padded_to_whole_chunks_of_weight_zero(corpus):
    batch = packer(corpus, chunk=50)(0)
    assert len(batch.entries) % 50 == 0
    assert batch.weights.sum() == batch.count < len(batch.entries)


def test_a_batch_follows_from_seed_and_step_alone(corpus):
    first, again = packer(corpus), packer(corpus)
    first(0), first(50)
    assert torch.equal(first(7).tokens, again(7).tokens)
    assert not torch.equal(packer(corpus, seed=1)(7).tokens, again(7).tokens)


def test_epochs_have_orders_of_their_own(corpus):
    make = packer(corpus, batch=1)
    assert not torch.equal(make(0).tokens, make(make.rows).tokens)


def test_only_the_given_conversations_are_used(corpus):
    make = packer(corpus, documents=np.array([3, 5]), batch=1)
    allowed = set(corpus.text(3)[0].tolist()) | set(corpus.text(5)[0].tolist())
    assert {t for step in range(6) for t in make(step).tokens.flatten().tolist()} <= allowed


def test_too_little_text_for_one_row_is_refused(corpus):
    with pytest.raises(DataError, match=r"not enough for one row of 100000; lower data.length"):
        packer(corpus, length=100_000)
