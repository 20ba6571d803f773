import json
import math
import sys
from pathlib import Path

import pytest

from eagle.cli import main
from eagle.errors import DataError
from eagle.train.evaluation.report import read_run, run_names

pytest.importorskip("matplotlib")
from eagle.train.evaluation.figure import draw, picture


def train_line(step, **changes):
    loss = 3 / math.sqrt(step)
    line = {"kind": "train", "step": step, "loss": loss, "feature": loss / 2, "token": loss}
    figures = {"accuracy": 1 - loss / 3, "seconds": step * 0.6, "tokens_per_step": 1000}
    return line | figures | changes


def evaluation(step, held=2.0, **changes):
    tau = {"chain 3": {"held-out": held}, "static": {"held-out": held + 1, "other": None}}
    alphas = {"held-out": [0.5, 0.25], "other": [0.75, None]}
    return {"kind": "evaluation", "step": step, "tau": tau, "n_alpha": alphas} | changes


def write(folder, lines):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def run(tmp_path):
    lines = [train_line(step) for step in range(10, 210, 10)]
    return write(tmp_path / "one", [*lines, evaluation(100), evaluation(200, held=2.5)])


@pytest.fixture
def eagle(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        out, err = capsys.readouterr()
        return exit_.value.code, out, " ".join(err.split())

    return call


def test_reads_every_curve_with_its_steps(run):
    found = read_run(run)
    assert found.name == "one"
    assert found.train["loss"].steps.tolist() == list(range(10, 210, 10))
    assert found.train["accuracy"].values[0] == pytest.approx(1 - 1 / math.sqrt(10))
    assert found.tau["chain 3"]["held-out"].values.tolist() == [2.0, 2.5]
    assert found.tau["static"]["held-out"].steps.tolist() == [100, 200]
    assert found.tau["static"]["other"].steps.tolist() == []
    assert found.n_alpha["held-out"].values.tolist() == [[0.5, 0.25]] * 2
    assert math.isnan(found.n_alpha["other"].values[0, 1])


def test_a_chain_may_get_longer_when_a_run_is_resumed(run):
    longer = evaluation(300, n_alpha={"held-out": [0.5, 0.4, 0.3]})
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(longer) + "\n")
    values = read_run(run).n_alpha["held-out"].values
    assert values[-1].tolist() == [0.5, 0.4, 0.3]
    assert math.isnan(values[0, 2])


def test_steps_lie_where_tokens_and_time_say(run):
    found = read_run(run)
    steps = found.tau["chain 3"]["held-out"].steps
    assert found.along(steps, "steps").tolist() == [100, 200]
    assert found.along(steps, "tokens").tolist() == pytest.approx([0.1, 0.2])
    assert found.along(steps, "minutes").tolist() == pytest.approx([1.0, 2.0])


def test_tokens_add_up_where_a_step_has_grown(tmp_path):
    lines = [train_line(10), train_line(20), train_line(30, tokens_per_step=3000)]
    found = read_run(write(tmp_path / "a", lines))
    assert found.tokens.values.tolist() == [10_000, 20_000, 50_000]


def test_a_log_that_does_not_count_tokens_says_so(tmp_path):
    line = train_line(10)
    del line["tokens_per_step"]
    found = read_run(write(tmp_path / "a", [line]))
    with pytest.raises(DataError, match="the log of a does not count tokens; use --against steps"):
        found.along(found.train["loss"].steps, "tokens")


def test_a_last_line_that_is_being_written_is_left_out(run):
    with (run / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert read_run(run).train["loss"].steps[-1] == 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no line of training yet"),
        ('{"kind": "evaluation", "step": 1, "tau": {}, "n_alpha": {}}\n', "no line of training"),
        ('{"kind": "tr\n{"kind": "train"}\n', r"log\.jsonl:1: not a line of JSON"),
        ("[1]\n", r"log\.jsonl:1: not a line of a training run's log"),
        ('{"kind": "train", "step": 1}\n', "is not the log of a training run: KeyError: 'loss'"),
        (json.dumps(train_line(1, loss="x")) + "\n", "is not the log of a training run"),
        (
            json.dumps(train_line(1)) + '\n{"kind": "evaluation", "step": 1, "tau": 3}\n',
            "not the log",
        ),
        ("\udcff", "cannot be read"),
    ],
)
def test_something_else_is_refused(tmp_path, content, message):
    folder = write(tmp_path / "a", [])
    (folder / "log.jsonl").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        read_run(folder)


def test_a_folder_without_a_log_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"there is no log .*log\.jsonl; give the folder of a run"):
        read_run(tmp_path)


def test_runs_are_named_by_what_tells_them_apart():
    assert run_names([Path("a/out"), Path("b/out"), Path("b/new")]) == ["a/out", "b/out", "b/new"]
    assert run_names([Path("runs/a/log.jsonl"), Path("runs/b")]) == ["a", "b"]
    assert run_names([Path("a"), Path("a")]) == ["a", "a"]


def drawn(axes):
    return {tuple(line.get_ydata()) for line in axes.get_lines()}


def test_the_picture_has_the_curves_of_all_runs(run, tmp_path):
    other = write(tmp_path / "two", [train_line(10), train_line(20), evaluation(20, held=1.5)])
    runs = [read_run(run), read_run(other)]
    figure = picture(runs)
    loss, accuracy, tau, alphas = figure.axes
    assert drawn(loss) == {tuple(one.train["loss"].values) for one in runs}
    assert drawn(accuracy) == {tuple(one.train["accuracy"].values) for one in runs}
    assert {(2.0, 2.5), (3.0, 3.5), (1.5,), (2.5,)} <= drawn(tau)
    assert (0.5, 0.25) in drawn(alphas)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
    assert [text.get_text() for text in tau.get_legend().get_texts()] == [
        "chain 3",
        "static",
        "held-out",
        "other",
    ]
    assert all(axes.get_title() and axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert tau.get_xlim() == loss.get_xlim()


def test_long_curves_are_drawn_as_they_are_and_smoothed(tmp_path):
    noisy = [train_line(step, loss=1.0 + 0.1 * (step % 2)) for step in range(1, 401)]
    run = read_run(write(tmp_path / "a", noisy))
    raw, smooth = picture([run]).axes[0].get_lines()
    assert raw.get_ydata().tolist() == [line["loss"] for line in noisy]
    inner = smooth.get_ydata()[20:-20]
    assert inner.max() - inner.min() < 0.02
    assert smooth.get_ydata()[0] == raw.get_ydata()[0]


def test_the_beginning_does_not_flatten_the_rest(tmp_path):
    lines = [train_line(step, loss=50.0 if step < 3 else 1 + 1 / step) for step in range(1, 401)]
    axes = picture([read_run(write(tmp_path / "a", lines))]).axes[0]
    assert axes.get_ylim()[1] < 2


def test_without_an_evaluation_there_is_no_lower_row(tmp_path):
    figure = picture([read_run(write(tmp_path / "a", [train_line(10)]))])
    assert len(figure.axes) == 2
    assert figure.legends == []


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_file_is_what_its_name_says(run, tmp_path, suffix, start):
    out = tmp_path / f"report.{suffix}"
    draw([read_run(run)], out)
    assert out.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["none/report.png", "report.what"])
def test_a_file_that_cannot_be_written_is_named(run, tmp_path, name):
    with pytest.raises(DataError, match=r"report\.\w+ cannot be written"):
        draw([read_run(run)], tmp_path / name)


def test_the_command_draws_and_tells_the_last_figures(eagle, run, tmp_path):
    out = tmp_path / "report.png"
    status, said, _ = eagle("train", "report", str(run), str(run / "log.jsonl"), "--out", str(out))
    assert status == 0
    assert "one: step 200, loss 0.212, accuracy 0.929, tau 2.50 (chain 3, held-out)" in said
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_command_needs_matplotlib_and_says_how_to_get_it(eagle, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, said = eagle("train", "report", str(run))
    assert status == 2
    assert "pip install 'eagle-decoding[plots]'" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "Missing argument 'CONFIG'"),
        (("train", "report"), "Missing argument 'RUN...'"),
        (("train", "report", "none"), "there is no log none/log.jsonl"),
        (("train", "--resume", "none.yaml"), "none.yaml: cannot be read"),
        (("train", "none.yaml", "--what"), "No such option: --what Try 'eagle train --help'"),
    ],
)
def test_mistakes_are_explained(eagle, arguments, message):
    status, _, said = eagle(*arguments)
    assert status == 2
    assert message in said


def test_a_run_that_was_measured_once_has_bars(run, tmp_path):
    once = write(tmp_path / "once", [train_line(10), train_line(20), evaluation(20)])
    for folder, bars in ((once, [2.0, 3.0]), (run, [])):
        lower = picture([read_run(folder)]).axes[2]
        assert [bar.get_height() + bar.get_y() for bar in lower.patches] == bars
        assert bool(lower.lines) != bool(bars)


def test_only_the_sets_that_were_asked_for_are_shown(eagle, run, tmp_path):
    found = read_run(run)
    assert found.sets == ["held-out", "other"]
    assert found.only(["other"]).tau == {
        "chain 3": {},
        "static": {"other": found.tau["static"]["other"]},
    }
    out = tmp_path / "report.png"
    code, text, _ = eagle("train", "report", str(run), "--prompts", "held-out", "--out", str(out))
    assert code == 0
    assert "held-out" in text
    assert "other" not in text
    assert out.is_file()


def test_refuses_a_set_that_no_evaluation_has(eagle, run, tmp_path):
    out = tmp_path / "report.png"
    code, _, error = eagle("train", "report", str(run), "--prompts", "gsm8k", "--out", str(out))
    assert code == 2
    assert "one was not measured on 'gsm8k'; there is held-out, other" in error
    assert not out.exists()
