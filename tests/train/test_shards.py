import json
import shutil
from collections import Counter

import numpy as np
import pytest
import torch

from eagle.errors import DataError, SpecError
from eagle.testing import tiny_target
from eagle.train.data.fingerprints import fingerprint
from eagle.train.data.packing import Packer
from eagle.train.features import layout
from eagle.train.features.layout import Layout
from eagle.train.run import shards as module
from eagle.train.run.run import train
from eagle.train.spec.recipe import load_train_spec

BASE = """
data: {packed: text.npz, length: 32, heldout: 0.1, features: cached}
batch: 3
steps: 20
log_every: 1
save_every: 10
tensorboard: false
evaluation: {every: null, heldout: 0}
"""


@pytest.fixture
def spec(tmp_path, corpus):
    corpus.save(tmp_path / "text.npz")
    (tmp_path / "run.yaml").write_text(BASE)

    def make(*overrides, output="out"):
        return load_train_spec(tmp_path / "run.yaml", [f"output={tmp_path / output}", *overrides])

    return make


@pytest.fixture
def small_files(monkeypatch):
    """Files of four rows instead of half a gibibyte."""
    monkeypatch.setattr(layout, "SHARD", 4 * 32 * 32 * 4)


def losses(outcome):
    lines = (outcome.head.parent / "log.jsonl").read_text().splitlines()
    parsed = [json.loads(line) for line in lines]
    return [line["loss"] for line in parsed if line["kind"] == "train"]


def files(folder):
    return sorted(path.name for path in folder.glob("features-*"))


def on_the_fly(make):
    return make("data.features=on-the-fly", "data.repack=false", output="fly")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_from_cached_features_has_the_losses_of_one_that_computes_them(
    spec, small_files, dtype
):
    target = tiny_target("llama-gqa", dtype=dtype)
    cached, fly = train(spec(), target=target), train(on_the_fly(spec), target=target)
    assert len(files(cached.head.parent / "features")) > 3
    # More than one epoch, so that rows came in another order too.
    assert len(losses(fly)) == 20
    exact = dtype == torch.float32
    assert losses(cached) == pytest.approx(losses(fly), rel=1e-6 if exact else 1e-2)


def test_the_target_makes_no_pass_in_training_once_its_features_are_there(
    spec, small_files, monkeypatch
):
    target = tiny_target("llama-gqa")
    train(spec("steps=1"), target=target)
    monkeypatch.setattr(module.Features, "__call__", lambda *_: pytest.fail("a pass was made"))
    second = train(spec(f"data.cache={spec().output}/features", output="second"), target=target)
    assert second.finished
    assert not (second.head.parent / "features").exists()


def test_files_hold_what_the_estimate_says(spec, small_files, capsys):
    outcome = train(spec("steps=1"), target=tiny_target("llama-gqa"))
    folder = outcome.head.parent / "features"
    written = sum((folder / name).stat().st_size for name in files(folder))
    rows = json.loads((folder / "layout.json").read_text())["rows"]
    size = rows * 32 * 32 * 4
    assert size <= written < size + 200 * len(files(folder))
    assert f"cached features take {size / 2**30:.2f} GiB" in capsys.readouterr().err


def test_more_than_the_limit_is_refused_before_anything_is_written(spec, tmp_path):
    with pytest.raises(DataError, match=r"take 0\.0 GiB, more than data\.cache_limit: 1e-06"):
        train(spec("data.cache_limit=1e-6"), target=tiny_target("llama-gqa"))
    assert not (tmp_path / "out" / "features").exists()


def test_more_than_the_disk_has_is_refused_before_anything_is_written(spec, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match=r"need 0\.00 GiB more, but the disk of .* has 0\.00 GiB"):
        train(spec(), target=tiny_target("llama-gqa"))
    assert files(tmp_path / "out" / "features") == []


@pytest.mark.parametrize(
    ("seed", "change", "named"),
    [
        (0, "data.length=16", "rows, length"),
        (0, "data.seed=1", "data.seed"),
        (1, "batch=3", "target"),
    ],
)
def test_features_of_something_else_are_refused(spec, small_files, tmp_path, seed, change, named):
    train(spec("steps=1"), target=tiny_target("llama-gqa"))
    other = spec(change, f"data.cache={tmp_path / 'out' / 'features'}", output="other")
    with pytest.raises(DataError, match=f"holds features of another .*{named}"):
        train(other, target=tiny_target("llama-gqa", seed=seed))


def test_features_of_other_text_are_refused(spec, small_files, tmp_path, make_corpus):
    train(spec("steps=1"), target=tiny_target("llama-gqa"))
    make_corpus(seed=1).save(tmp_path / "text.npz")
    other = spec(f"data.cache={tmp_path / 'out' / 'features'}", output="other")
    with pytest.raises(DataError, match=r"features of another (rows, )?text"):
        train(other, target=tiny_target("llama-gqa"))


def test_what_is_whole_is_kept_and_the_rest_is_made_again(spec, small_files, tmp_path):
    target = tiny_target("llama-gqa")
    whole = losses(train(spec(output="whole"), target=target))
    folder = tmp_path / "out" / "features"
    shutil.copytree(tmp_path / "whole" / "features", folder)
    first, second, third = (folder / name for name in files(folder)[:3])
    second.unlink()
    third.write_bytes(third.read_bytes()[:-10])
    (folder / f".{second.name}.writing").write_bytes(b"cut off")
    before = first.stat().st_mtime_ns
    assert losses(train(spec(), target=target)) == whole
    assert first.stat().st_mtime_ns == before
    assert files(folder) == files(tmp_path / "whole" / "features")
    assert not list(folder.glob(".*.writing"))


def test_a_full_disk_keeps_what_is_whole(spec, small_files, tmp_path, monkeypatch):
    save, calls = module.save_file, []

    def full(tensors, path):
        calls.append(path)
        if len(calls) == 3:
            path.write_bytes(b"a part")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    target = tiny_target("llama-gqa")
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises(DataError, match=r"could not be written .*No space left.*run again"):
            train(spec(), target=target)
    folder = tmp_path / "out" / "features"
    assert len(files(folder)) == 2
    assert not list(folder.glob(".*.writing"))
    assert train(spec(), target=target).finished


def test_a_file_that_vanishes_is_named(spec, small_files, tmp_path, monkeypatch):
    target = tiny_target("llama-gqa")
    train(spec("steps=1"), target=target)
    monkeypatch.setattr(module.Shards, "_complete", lambda *_: True)
    for path in (tmp_path / "out" / "features").glob("features-*"):
        path.unlink()
    with pytest.raises(DataError, match=r"features-0000\d\.safetensors cannot be read"):
        train(spec("save_every=1"), target=target, resume=True)


def test_rows_that_are_cut_anew_cannot_be_cached(spec):
    with pytest.raises(SpecError, match="repack should be false with cached features"):
        spec("data.repack=true")


def test_fixed_rows_are_the_first_epochs_in_another_order(corpus):
    documents = np.arange(len(corpus.ends))
    sizes = {"length": 16, "batch": 1, "chunk": 1, "seed": 0}
    fixed = Packer(corpus, documents, repack=False, **sizes)
    anew = Packer(corpus, documents, **sizes)
    rows = [[fixed.numbers(e * fixed.rows + i)[0] for i in range(fixed.rows)] for e in range(3)]
    assert rows[0] == list(range(fixed.rows))
    assert all(Counter(order) == Counter(rows[0]) for order in rows)
    assert rows[1] != rows[0] != rows[2] != rows[1]
    step = fixed.rows + 3
    assert torch.equal(fixed(step).tokens, anew(rows[1][3]).tokens)
    assert not torch.equal(fixed(step).tokens, anew(step).tokens)


def test_a_fingerprint_tells_weights_and_dtypes_apart():
    made = [tiny_target("llama-gqa"), tiny_target("llama-gqa")]
    assert fingerprint(made[0]) == fingerprint(made[1])
    others = [
        tiny_target("llama-gqa", seed=1),
        tiny_target("llama-gqa", dtype=torch.bfloat16),
        tiny_target("qwen2"),
    ]
    assert len({fingerprint(one) for one in [made[0], *others]}) == 4


def test_features_that_are_not_the_lm_heads_input_are_kept_beside_it(corpus, tmp_path):
    class Joined:
        layers = (1,)

        def feature_size(self, info):
            return 2 * info.hidden_size

        def extract(self, last, hidden_states):
            return torch.cat((last, hidden_states[0]), dim=-1)

    target = tiny_target("llama-gqa")
    sizes = {"length": 32, "batch": 4, "chunk": 1, "seed": 0}
    packer = Packer(corpus, np.arange(len(corpus.ends)), repack=False, **sizes)
    held = Layout.of(packer.rows, 32, Joined(), target.info, target.dtype, {})
    assert (held.features, held.last) == (64, 32)
    assert held.bytes == packer.rows * 32 * 96 * 4

    made, device = module.Features(target, Joined()), torch.device("cpu")
    kept = module.Shards(tmp_path, held)
    with target.stock():
        kept.prepare(packer, made, device, batch=4, limit=1, say=lambda _: None)
        batch = packer(1)
        visible = module.visibility(batch.documents)
        true, last = made(batch.tokens, batch.positions, visible)
    found = kept.rows(packer.numbers(1), device)
    torch.testing.assert_close(found, (true, last))
