"""A tokenizer for tiny targets, conversations in its words, and a folder with all of it."""

import json
import random

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eagle.testing import tiny_target

WORDS = [*("<pad>", "<bos>", "<eos>"), *(f"w{t}" for t in range(3, 64))]
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}w3 {{ m.content }} w4 "
    "{% elif m.role == 'assistant' %}{{ m.content }} <eos> "
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"
)


def word_tokenizer():
    """Return a tokenizer whose token t is the word "wt"; 0 to 2 are special."""
    model = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=TEMPLATE,
    )


def write_talks(path, count, turns=2, longest=20):
    """Write conversations of random words, `messages` on each line."""
    rng = random.Random(0)

    def say():
        return " ".join(rng.choices(WORDS[5:], k=rng.randint(3, longest)))

    talks = [
        {
            "id": f"talk{number}",
            "messages": [
                {"role": role, "content": say()}
                for role in ("user", "assistant") * rng.randint(1, turns)
            ],
        }
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    return talks


def write_project(folder, talks=60):
    """Write a tiny target into ``target`` and conversations into ``talk.jsonl``."""
    tiny_target("llama-gqa").model.save_pretrained(folder / "target")
    word_tokenizer().save_pretrained(folder / "target")
    write_talks(folder / "talk.jsonl", talks)
