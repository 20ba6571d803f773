import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eagle.cli import main
from tests.train.words import write_project

TALK = {
    "messages": [
        {"role": "user", "content": "Say hello."},
        {"role": "assistant", "content": "Hello there, and welcome to this conversation."},
    ]
}


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        out, err = capsys.readouterr()
        return exit_.value.code, out, err

    return call


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "talk.jsonl").write_text("\n".join([json.dumps(TALK)] * 20))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {sources: [{path: talk.jsonl}], length: 32, heldout: 0}\n"
        "evaluation: {heldout: 0, every: null}\n"
        "target: {dtype: float32}\nloss: {chunk: 64}\nsteps: 1\nbatch: 1\n"
        f"output: {tmp_path / 'out'}\n"
    )
    return path


@pytest.mark.parametrize("command", [("train",), ("data", "prepare"), ("data", "inspect")])
def test_help_says_how_a_key_of_a_training_config_is_set(run, command):
    status, out, _ = run(*command, "--help")
    assert status == 0
    text = " ".join(out.replace("│", " ").split())
    assert "its path joined by dots and its value in YAML, as in optimizer.lr=5e-4" in text


def test_schema_is_json(run):
    status, out, _ = run("train", "schema")
    assert status == 0
    assert json.loads(out)["title"] == "TrainSpec"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "none.yaml"), "none.yaml: cannot be read"),
        (("train", "tiny", "--set", "lr=1"), "lr: unknown key"),
        (("data", "prepare", "tinny", "--out", "x"), "Did you mean 'tiny'"),
        (("data", "inspect", "tiny", "--set", "data.packed=none.npz"), "no packed text none.npz"),
        (("data", "regenerate", "none.jsonl", "--out", "x"), "there is no file none.jsonl"),
        (("data", "regenerate", "\udcff.jsonl", "--out", "x"), "CONFIG|DATA: "),
        (("data", "regenerate", "", "--out", "x"), "CONFIG|DATA: should not be empty"),
        (("data", "regenerate", "tinny.yaml", "--out", "x"), "tinny.yaml: cannot be read"),
        (("data", "regenerate", "x", "--out", "x", "--temperature", "-1"), "--temperature"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_2(run, arguments, message):
    status, out, err = run(*arguments)
    assert status == 2
    assert message in " ".join(err.split())
    assert out == ""
    assert "Traceback" not in err


@pytest.fixture
def project(tmp_path):
    write_project(tmp_path, talks=3)
    config = "target: {model: target, dtype: float32}\ndata: {sources: [{path: talk.jsonl}]}\n"
    (tmp_path / "run.yaml").write_text(config)
    return tmp_path


@pytest.mark.parametrize("name", ["talk.jsonl", "run.yaml"])
def test_prepare_replaces_no_file_but_packed_text(run, project, name):
    before = (project / name).read_bytes()
    words = ("data", "prepare", str(project / "run.yaml"), "--out")
    status, _, err = run(*words, str(project / name))
    assert status == 2
    assert f"{name} is there and is no packed text" in " ".join(err.split())
    assert (project / name).read_bytes() == before
    for _ in range(2):
        assert run(*words, str(project / "text.npz"))[0] == 0


def test_prepare_says_before_it_reads_that_nothing_could_be_written(run, project):
    words = ("data", "prepare", str(project / "run.yaml"), "--out")
    status, _, err = run(*words, str(project / "talk.jsonl" / "text.npz"))
    assert status == 2
    assert "its folder cannot be made" in " ".join(err.split())
    assert "conversations used" not in err


def test_inspect_sends_no_codes_of_a_text_to_the_terminal(run, project):
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "\x1b[31mw9": 1, "w8": 2}, "<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    made.save_pretrained(project / "target")
    (project / "talk.txt").write_text("w8 \x1b[31mw9 w8 w8")
    sources = f"data.sources=[{{path: {project / 'talk.txt'}}}]"
    status, out, err = run("data", "inspect", str(project / "run.yaml"), "--set", sources)
    assert status == 0, err
    assert "\\x1b[31mw9" in out
    assert "\x1b" not in out


def test_an_answer_behind_the_cut_is_said_to_be_cut(run, project):
    words = ("data", "prepare", str(project / "run.yaml"), "--out", str(project / "text.npz"))
    status, _, err = run(*words, "--set", "data.max_length=2")
    assert status == 2
    assert "3 without an answer, 0 that the chat template refuses, 3 of them cut at 2" in " ".join(
        err.split()
    )


def test_regenerate_says_what_it_leaves_out(run, project):
    asked = {"messages": [{"role": "user", "content": "w9 w8"}]}
    silent = {"messages": [{"role": "system", "content": "w9"}]}
    told = [asked, {"messages": []}, silent, {"text": "w9"}, asked]
    (project / "talk.json").write_text(json.dumps(told)[:-5])
    words = ("data", "regenerate", str(project / "talk.json"), "--out", str(project / "out.jsonl"))
    settings = ("--target", str(project / "target"), "--max-new-tokens", "2")
    status, _, err = run(*words, *settings, "--set", "target.dtype=float32")
    said = " ".join(err.split())
    assert status == 0, said
    assert "talk.json breaks off in element 4; the 4 before it are used" in said
    assert "3 of 4 conversations have no question, and are left out" in said
    assert len((project / "out.jsonl").read_text().splitlines()) == 1


@pytest.mark.embedded
def test_prepares_inspects_and_trains(run, recipe, tmp_path):
    packed = tmp_path / "text.npz"
    status, out, err = run("data", "prepare", str(recipe), "--out", str(packed))
    assert status == 0
    assert "20 of 20 conversations used" in err
    assert str(packed) in out

    status, out, _ = run("data", "inspect", str(recipe), "--set", f"data.packed={packed}")
    assert status == 0
    assert "Hello there, and welcome" in " ".join(out.split())

    status, out, _ = run("train", str(recipe), "--set", f"data.packed={packed}", "--json")
    assert status == 0
    result = json.loads(out)
    assert result["finished"]
    assert (tmp_path / "out" / "head" / "model.safetensors").stat().st_size < 10_000_000


@pytest.mark.embedded
def test_sample_that_does_not_exist_is_refused(run, recipe):
    status, _, err = run("data", "inspect", str(recipe), "--sample", "99")
    assert status == 2
    assert "there are 20 conversations" in " ".join(err.split())


QWEN = (  # thoughts of the last answer alone, as Qwen3 has it
    "{% for m in messages %}{% if m.role == 'user' %}w3 {{ m.content }} w4 "
    "{% elif m.role == 'assistant' %}{% if loop.last %}w5 {% endif %}{{ m.content }} <eos> "
    "{% endif %}{% endfor %}"
)


def test_inspect_says_what_has_no_loss_and_what_is_not_read(run, tmp_path):
    write_project(tmp_path, talks=1)
    (tmp_path / "target" / "chat_template.jinja").write_text(QWEN)
    turns = [{"role": "user", "content": "w9"}, {"role": "assistant", "content": "w8 w7"}]
    call = {"role": "assistant", "tool_calls": [{"name": "f"}]}
    lines = [{"messages": [*turns, *turns]}, {"messages": [*turns[:1], call, *turns]}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "talk.jsonl").write_text(text)
    (tmp_path / "run.yaml").write_text(
        "target: {model: target}\ndata: {sources: [{path: talk.jsonl}]}\n"
    )
    packed = tmp_path / "text.npz"
    assert run("data", "prepare", str(tmp_path / "run.yaml"), "--out", str(packed))[0] == 0
    for more in ((), ("--set", f"data.packed={packed}")):
        status, out, _ = run("data", "inspect", str(tmp_path / "run.yaml"), *more)
        said = " ".join(out.split())
        assert status == 0
        assert "1 of 4 answers have no loss: the chat template renders them otherwise" in said
        assert "1 of 4 answers have no loss: they have no words" in said
        assert "not read: `tool_calls` of turns (1 times)" in said
