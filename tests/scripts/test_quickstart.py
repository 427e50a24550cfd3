"""The quickstart and the translation through their real commands, cut short by flags alone."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from commands import HANGS, ROOT, outputs, start, stop_when
from omegaconf import OmegaConf

import fairseq_luna  # torch loads fairseq's checkpoints once this is imported

ARCH = "luna_transformer_tiny_local"
SHORT = "optimization.lr=[0.004]", "dataset.max_valid_steps=2", "dataset.max_tokens=512"
SENTENCE = "Click OK to save the file."


def quickstart(out: Path, *args) -> list:
    return ["luna_tools.quickstart.command", *SHORT, "--updates", "20", "--cpu", "--out", out, *args]


def translate(model: Path, *args, **options):
    """translate.sh: the bytes that it wrote, and what it said on stderr."""
    out, err = outputs("luna_tools.evaluation.translate", "--cpu", "--model", model, *args, encoding=None, **options)
    return out, err.decode()


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A whole run."""
    out = tmp_path_factory.mktemp("a folder with spaces") / "run"
    outputs(*quickstart(out))
    return out


@pytest.mark.stock
def test_report(finished):
    report = json.loads((finished / "report.json").read_text(encoding="utf-8"))
    assert report["arch"] == ARCH and report["updates"] == 20 and report["parameters"] > 1e6
    assert report["BLEU"]["score"] >= 0 and "tok:13a" in report["BLEU"]["signature"]
    assert 0 < report["chrF"]["score"] < 100 and "nc:6" in report["chrF"]["signature"]
    assert 1 < report["best valid nll (nats per piece)"] < 9
    assert report["commands"]["train"].startswith(f"bash scripts/train.sh quickstart model={ARCH} ")
    assert " optimization.max_update=20 " in report["commands"]["train"]
    assert set(report["seconds"]) >= {"data", "training", "average", "translation", "score"}
    assert report["data"]["lines"]["test.de"] == 1500
    assert report["data"]["lines that do not survive pieces and back"] == 0
    assert len((finished / "test.translated.de").read_bytes().split(b"\n")) == 1501
    assert (finished / "examples.md").read_text(encoding="utf-8").count("reference: ") == 10
    assert (finished / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    assert not list(finished.rglob("*.part"))


@pytest.mark.release
@pytest.mark.stock
def test_killed_run_equals_an_unbroken_one(finished, tmp_path):
    """Killed while its data was prepared, stopped and killed in training, and taken up each time."""
    again = tmp_path / "again"
    log, last = again / "data.log", again / "checkpoints" / "checkpoint_last.pt"
    stop_when(lambda: log.exists() and "learning" in log.read_text(), start(*quickstart(again)))
    said = stop_when(last.exists, start(*quickstart(again)), signal.SIGINT)[1]
    assert said.splitlines()[-1] == "quickstart: stopped; the same command goes on from here"
    assert "Traceback" not in said
    first = last.stat().st_mtime_ns
    stop_when(lambda: last.stat().st_mtime_ns != first, start(*quickstart(again)))
    stop_when((again / "model.pt").exists, start(*quickstart(again)))
    for name in "model.pt", "checkpoints/checkpoint_last.pt":
        ours, theirs = (torch.load(str(run / name), map_location="cpu")["model"] for run in (finished, again))
        assert ours.keys() == theirs.keys()
        keys = [key for key in ours if not key.endswith("._float_tensor")]  # fairseq 0.12.2 saves uninitialised memory
        assert all(torch.equal(ours[key], theirs[key]) for key in keys)

    # killed once fairseq-train had ended, and before that was noted: it must make no update more
    trained, made = again / "training.json", last.stat().st_mtime_ns
    trained.unlink()
    stop_when(trained.exists, start(*quickstart(again)))
    assert last.stat().st_mtime_ns == made


def test_second_run_does_nothing(finished):
    files = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    out, _ = outputs(*quickstart(finished))
    assert out.count("done before") == 6 and "BLEU" in out
    files.pop(finished / ".lock")
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_other_settings_are_refused(finished):
    _, err = outputs(*quickstart(finished, "--seed", "2"), code=1)
    assert "--seed was 1, now 2" in err and "--out" in err


def test_folder_in_use_is_refused(finished):
    import fcntl

    with open(finished / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is at work" in outputs(*quickstart(finished), code=1)[1]


def test_failing_command_shows_its_log(finished, tmp_path):
    for name in "data", "settings.json":
        path = finished / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / name)
    _, err = outputs(*quickstart(tmp_path, "optimizer.adam_betas=x"), code=1)
    assert "the last lines of" in err and "name 'x' is not defined" in err


def test_unknown_arch(tmp_path):
    _, err = outputs(*quickstart(tmp_path / "run", "--arch", "transfomer"), code=1)
    assert "--arch transfomer" in err and "transformer" in err.split("did you mean")[1]


@pytest.mark.release
def test_other_arch_of_the_same_dimensions(finished, tmp_path):
    """The baseline trains, beginning with the data of another run; stopped at once, it can still translate."""
    shutil.copytree(finished / "data", tmp_path / "run" / "data")
    shutil.copy(finished / "settings.json", tmp_path / "run")
    other = quickstart(tmp_path / "run", "--arch", "transformer")
    stop_when((tmp_path / "run" / "checkpoints" / "checkpoint_last.pt").exists, start(*other), signal.SIGTERM)
    ours, theirs = (json.loads((run / "commands.json").read_text())["train"] for run in (finished, tmp_path / "run"))
    ours, theirs = (command.partition(" --data ")[0] for command in (ours, theirs))
    assert f" model={ARCH} " in ours and ours.replace(ARCH, "transformer_quickstart") == theirs
    out, err = translate(tmp_path / "run", "--beam", "1", text=SENTENCE.encode())
    assert out.endswith(b"\n") and "is not finished" in err


def test_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "mine").touch()
    assert "choose another --out" in outputs(*quickstart(tmp_path), code=1)[1]
    assert (tmp_path / "corpus" / "mine").exists()


@pytest.mark.stock
def test_translate_gives_a_line_for_each_line(finished, tmp_path):
    moved = tmp_path / "moved run"
    finished.rename(moved)  # nothing may depend on where the run was made
    try:
        lines = [SENTENCE.encode(), b"", b" \t ", b"broken \xff here", "a\u2028b \u0085 c".encode(), b"click " * 200]
        file = tmp_path / "a text.en"
        file.write_bytes(b"\r\n".join(lines[:5]))
        piped, err = translate(moved, "--beam", "1", text=b"\n".join(lines))
        assert piped.count(b"\n") == 6 and piped.split(b"\n")[1:3] == [b"", b""]
        assert "line 4 of the input is not UTF-8" in err
        assert len(err.splitlines()) == 1  # nothing else is said
        from_file, err = translate(moved, "--beam", "1", "--buffer", "2", file, "-", text=SENTENCE.encode())
        assert from_file.split(b"\n")[:5] == piped.split(b"\n")[:5]
        assert from_file.split(b"\n")[5:] == [piped.split(b"\n")[0], b""]
        assert f"line 4 of {file}" in err
    finally:
        moved.rename(finished)


def test_translation_stands_in_the_line_of_its_source(finished, monkeypatch):
    """With a model that echoes, through the whole path but the search, text comes back as it was, lossless."""
    translator = fairseq_luna.Translator([finished], device="cpu", batch_size=3)
    batches = []

    def echo(generator, models, batch, **forced):
        batches.append(batch["net_input"]["src_tokens"])
        return [[{"tokens": row[row != 1], "score": 0}] for row in batches[-1]]

    monkeypatch.setattr(translator.task, "inference_step", echo)
    lines = ["one two three", "", "  a  b ", "ß\u00a0€ 😀", "x", "y " * 40, "1\t2", " ", "z"]
    found = translator.translate(lines)
    assert found == [text if text.strip() else "" for text in lines]
    assert [len(batch) for batch in batches] == [3, 3, 1]


def test_translate_without_a_model(tmp_path):
    out, err = translate(tmp_path / "nothing", code=1)
    assert not out and str(tmp_path / "nothing") in err and "quickstart.sh" in err


def test_help_needs_no_environment():
    for script in "scripts/quickstart.sh", "scripts/translate.sh", "data-prep/prepare-corpus.sh":
        shown = subprocess.run(
            ["bash", str(ROOT / script), "--help"], stdout=subprocess.PIPE, check=True, timeout=HANGS
        )
        assert b"usage: " + os.path.basename(script).encode() in shown.stdout


def test_at_its_usual_length_it_is_the_yaml():
    from luna_tools.quickstart.settings import AVERAGED, overrides_of

    yaml = OmegaConf.load(ROOT / "configs" / "quickstart.yaml")
    settled = overrides_of(yaml.optimization.max_update, yaml)
    listed = {key: OmegaConf.select(yaml, key) for key in settled}
    assert sum(value is not None for value in listed.values()) == 6
    for key, value in settled.items():
        assert listed[key] is None or key == "common.log_interval" or str(listed[key]) == str(value), key
    assert yaml.defaults[0].model == ARCH and yaml.checkpoint.keep_interval_updates == AVERAGED


def test_a_short_training_climbs_no_faster():
    from luna_tools.quickstart.settings import overrides_of

    yaml = OmegaConf.load(ROOT / "configs" / "quickstart.yaml")
    short = overrides_of(600, yaml)
    assert short["lr_scheduler.warmup_updates"] == 150 and short["optimization.lr"] == "[0.001]"
    assert short["dataset.validate_interval_updates"] == short["checkpoint.save_interval_updates"] == 30


def test_the_transformer_is_of_the_same_size():
    models = [OmegaConf.load(ROOT / "configs" / "model" / f"{name}.yaml") for name in (ARCH, "transformer_quickstart")]
    for name in "embed_dim", "layers", "attention_heads", "normalize_before":
        assert len({model[f"encoder_{name}"] for model in models}) == 1, name
    assert models[0].dropout == models[1].dropout
