"""What the pages take as given: a small model, its head, an adapter, prompts, talks, a shell."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.docs import server

ALPHABET = " abcdefghijklmnopqrstuvwxyz.,?!'0123456789"


def letters_tokenizer():
    """Return a tokenizer whose tokens are letters; 0 to 2 are special, as the target has them."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<pad>", "<bos>", "<eos>", *ALPHABET]
    tokens += [f"<{number}>" for number in range(len(tokens), 64)]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template="{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' %}<eos>{% else %} {% endif %}{% endfor %}",
    )


def write_adapter(folder: Path, layers: int, size: int) -> None:
    """Write an adapter as PEFT does, of which importing takes longer than all else here."""
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "target_modules": ["q_proj"], "r": 2}
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "my-model", "lora_alpha": 8})
    )
    weights = {}
    for layer in range(layers):
        place = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        weights[f"{place}A.weight"] = torch.ones(2, size)
        weights[f"{place}B.weight"] = torch.ones(size, 2)
    save_file(weights, folder / "adapter_model.safetensors")


@pytest.fixture(scope="session")
def given(pair, tmp_path_factory):
    """The folder with what pages may name in ``files``."""
    target, head = pair
    folder = tmp_path_factory.mktemp("given")
    target.model.save_pretrained(folder / "my-model")
    letters_tokenizer().save_pretrained(folder / "my-model")
    shutil.copytree(head, folder / "my-head")
    write_adapter(folder / "my-adapter", target.info.layers, target.info.hidden_size)
    (folder / "mine.yaml").write_text(
        "target: {model: ./my-model, dtype: float32}\nhead: {name: eagle, weights: ./my-head}\n"
    )
    (folder / "prompts.txt").write_text("Once upon a time\nWhat is the sky made of?\n")
    talk = [
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": "Hello there, and welcome to this conversation."},
    ]
    lines = (json.dumps({"messages": talk}) for _ in range(30))
    (folder / "conversations.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def shell(tmp_path_factory):
    """Run a script in a folder as a shell does, with our program on its path."""
    home = tmp_path_factory.mktemp("bin")
    path = str(home / "socket")
    program = home / "eagle"
    program.write_text(server.CLIENT.format(python=sys.executable, path=path))
    program.chmod(0o755)
    several = home / "torchrun"
    several.write_text(f'#!/bin/sh\nexec {sys.executable} -m torch.distributed.run "$@"\n')
    several.chmod(0o755)
    serving = subprocess.Popen([sys.executable, server.__file__, path], start_new_session=True)
    while not Path(path).exists():
        assert serving.poll() is None, "the server has ended"
        time.sleep(0.05)
    env = os.environ | {"PATH": f"{home}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}

    def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    yield run
    os.killpg(serving.pid, signal.SIGKILL)  # and whatever a page that failed left running
    serving.wait()
