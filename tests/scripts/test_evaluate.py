"""Averaging, beam search and evaluation through their real commands, on a tiny model of a toy language."""

import fcntl
import json
import random
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from commands import ROOT, call, fairseq
from commands import run as run_command
from luna_tools.evaluation.evaluate import architecture
from luna_tools.evaluation.scores import score
from luna_tools.training import average as average_checkpoints
from luna_tools.training.average import average_last
from omegaconf import OmegaConf

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_lines, sha256
from fairseq_luna.models.luna_transformer.architectures import ARCHITECTURES, CONFIGS

ENGLISH = "the red-white flag old house click save file menu open window".split()
GERMAN = "die rot-weiße Fahne alt Haus klicken speichern Datei Menü öffnen Fenster".split()
SIZES = {"train": 200, "valid": 20, "test": 20}
DIMENSIONS = [
    f"--{side}-{name}-dim={size}"
    for side in ("encoder", "decoder")
    for name, size in (("embed", 32), ("ffn-embed", 64))
]
DIMENSIONS += ["--encoder-layers", "1", "--decoder-layers", "1", "--share-all-embeddings"]


def evaluate(folder: Path, *args, **options) -> str:
    return call("luna_tools.evaluation.evaluate", folder, "--beam", "4", "--cpu", *args, **options)


def report(folder: Path) -> dict:
    return json.loads((folder / "evaluation" / "report.json").read_text(encoding="utf-8"))


def contents(folder: Path) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


SEARCH = "PYTHONPATH=scripts:data-prep python -m luna_tools.evaluation.process generate "


def saved(run: Path, updates: int) -> Path:
    """The checkpoint of so many updates: at the end of an epoch fairseq writes checkpoint_last.pt alone."""
    found = list((run / "checkpoints").glob(f"checkpoint_*_{updates}.pt"))
    return found[0] if found else run / "checkpoints" / "checkpoint_last.pt"


def prepare(folder: Path, recipe: str) -> Path:
    numbers = random.Random(1)
    (folder / "text").mkdir(parents=True)
    for split, size in SIZES.items():
        rows = [[numbers.randrange(11) for _ in range(numbers.choice((2, 4, 7, 12)))] for _ in range(size)]
        for lang, words in ("en", ENGLISH), ("de", GERMAN):
            lines = [" ".join(words[i] for i in row) + ".\n" for row in rows]
            (folder / "text" / f"{split}.{lang}").write_text("".join(lines), encoding="utf-8")
    splits = [word for split in SIZES for word in (f"--{split}", folder / "text" / split)]
    options = ["--source", "en", "--target", "de", "--recipe", recipe, "--vocab-size", "330", "--workers", "1"]
    call("luna_data.parallel.prepare_corpus", *splits, *options, "--out", folder / "data")
    return folder / "data"


def train(data: Path, run: Path, updates: int) -> None:
    run.mkdir()
    (run / "data").symlink_to(data)
    options = "--task translation --arch luna_transformer_tiny --optimizer adam --lr 0.01 --max-tokens 1000 --seed 1"
    options += " --no-epoch-checkpoints --disable-validation --num-workers 0 --dropout 0 --clip-norm 1 --cpu"
    limits = ["--max-update", updates, "--save-interval-updates", updates // 3, "--save-dir", run / "checkpoints"]
    run_command(fairseq("train", data / "data-bin", *options.split(), *DIMENSIONS, *limits))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run trained for 93 updates and evaluated."""
    folder = tmp_path_factory.mktemp("a folder with spaces")
    train(prepare(folder, "sentencepiece"), folder / "run", 93)
    evaluate(folder / "run", "--last", "2", "--sweep", "--lenpens", "0.6", "8")
    return folder / "run"


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """One to change, its data included."""
    shutil.copytree(finished, tmp_path / "copy", symlinks=False)
    return tmp_path / "copy"


@pytest.mark.stock
def test_report(finished):
    found = report(finished)
    hypotheses = list(read_lines(finished / "evaluation" / found["decoding"]["file"]))
    references = list(read_lines(finished / "data" / "raw" / "test.de"))
    assert len(hypotheses) == len(references) == 20
    for name, theirs in score(hypotheses, references, "de").items():
        ours = found["scores"][name]
        assert ours["score"] == theirs["score"] > 0 and "bs:1000" in ours["signature"], name
        assert ours["95 % interval"]["plus or minus"] > 0
    split = found["scores"]["tokenised BLEU, compounds split"]
    assert split["score"] > 0 and "comparison with the paper" in split["how"]
    assert sum(bucket["sentences"] for bucket in found["BLEU by words of the source"]) == 20
    assert found["model"]["arch"] == "luna_transformer_tiny" and found["model"]["updates"] == 93
    assert (found["model"]["projection length"], found["model"]["tied"]) == (16, True)
    assert found["model"]["causal activation"] == "softplus" and 1e4 < found["model"]["parameters"] < 1e5
    assert found["model"]["average of"] == [saved(finished, updates).name for updates in (62, 93)]
    assert found["data"]["recipe"] == "sentencepiece" and found["data"]["official test set"] == "unknown"
    command = found["decoding"]["command"]
    assert "sacrebleu" in found["versions"] and command.startswith(SEARCH)
    shown = (finished / "evaluation" / "table.md").read_text(encoding="utf-8")
    assert f"| {found['scores']['BLEU']['score']:.2f} ± " in shown and "(paper)" not in shown
    assert (finished / "evaluation" / "bleu-by-length.png").read_bytes().startswith(b"\x89PNG")
    assert not list(finished.rglob("*.part"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_model_is_named_by_its_settings(arch):
    """Whatever its checkpoint calls it, unless it has settings of its own."""
    settings = OmegaConf.to_container(OmegaConf.structured(CONFIGS[arch]), enum_to_str=True)
    before = {key: value for key, value in settings.items() if key != "arch"}  # of a version without that
    for name in "luna_transformer", "luna_transformer_tiny", arch:
        assert architecture(OmegaConf.create({**before, "_name": name})) == arch
    assert architecture(OmegaConf.create({**settings, "_name": arch, "encoder_layers": 1})) == arch
    assert architecture(OmegaConf.create({"_name": "transformer", "encoder_layers": 6})) == "transformer"


@pytest.mark.stock
def test_sweep_chooses_on_the_validation_set(finished):
    decoding = report(finished)["decoding"]
    bleu = {row["lenpen"]: row["BLEU on valid"] for row in decoding["sweep"]}
    assert set(bleu) == {0.6, 8} and bleu[0.6] != bleu[8]
    assert bleu[decoding["lenpen"]] == max(bleu.values())
    references = list(read_lines(finished / "data" / "raw" / "valid.de"))
    for lenpen, value in bleu.items():
        hypotheses = list(read_lines(finished / "evaluation" / f"valid.beam4.lenpen{lenpen:g}.de"))
        assert score(hypotheses, references, "de")["BLEU"]["score"] == value
    translated = {path.name for path in (finished / "evaluation").glob("test.*.de")}
    assert translated == {decoding["file"]}  # the test set was left alone with the others


@pytest.mark.stock
def test_average_is_the_mean(finished):
    mean = torch.load(str(finished / "model.pt"))["model"]
    one, two = (torch.load(str(saved(finished, updates)))["model"] for updates in (62, 93))
    assert any(not torch.equal(one[name], two[name]) for name in mean)
    for name in mean:
        if not name.endswith("._float_tensor"):  # fairseq 0.12.2 saves uninitialised memory
            torch.testing.assert_close(mean[name], (one[name] + two[name]) / 2)


@pytest.mark.stock
def test_second_call_does_nothing(finished):
    before = contents(finished)
    said = evaluate(finished, "--sweep", "--lenpens", "0.6", "8")  # the two checkpoints are remembered
    assert "translating" not in said and "holds the scores already" in said and "| system |" in said
    assert contents(finished) == before


def test_against_another_run(finished, copy):
    """Other settings are translated and scored anew, and tested against the first run; the table knows the paper."""
    manifest = json.loads((copy / "data" / "manifest.json").read_text(encoding="utf-8"))
    manifest["corpus"] = "wmt14-en-de"
    manifest["held out"] = {"test": {"official": False}}
    (copy / "data" / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    before = contents(copy)
    said = evaluate(copy, "--lenpen", "-1", "--against", finished)
    assert said.count("generate: translating test") == 1 and "translating valid" not in said
    assert contents(copy)[copy / "model.pt"] == before[copy / "model.pt"]
    found, other = report(copy), report(finished)
    assert found["decoding"]["lenpen"] == -1 and not found["decoding"]["sweep"]
    tests = found["against"]["paired bootstrap"]
    assert list(tests) == ["BLEU", "chrF2++", "TER"]
    for name, test in tests.items():
        assert (test["this"], test["other"]) == (found["scores"][name]["score"], other["scores"][name]["score"])
        assert 0 < test["p-value"] <= 1
    table = (copy / "evaluation" / "table.md").read_text(encoding="utf-8").split("\n")
    rows = [line for line in table if line.startswith("| ")]
    assert "**copy: " in rows[2] and "not the official test set" in rows[2] and "**run: " in rows[3]
    assert len(rows) == 4 + 11 and "| Luna, untied, softplus, l = 32 (paper) | 77.6M | 27.8 |" in rows[-1]
    assert any(line.startswith("copy against run, paired bootstrap: BLEU ") for line in table)

    assert "was not evaluated" in evaluate(copy, "--against", copy / "data", code=1)
    with open(copy / "data" / "raw" / "test.de", "a", encoding="utf-8") as file:
        file.write("Haus\n")
    assert "another test set" in evaluate(copy, "--against", finished, code=1)


def test_as_many_hypotheses_as_references(copy):
    for lang in "en", "de":
        path = copy / "data" / "raw" / f"test.{lang}"
        path.write_text(path.read_text(encoding="utf-8") + "x\n", encoding="utf-8")
        if lang == "en":
            said = call("luna_tools.evaluation.generate", copy, "--cpu", "--beam", "1", code=1)
            assert "test.en has 21 lines" in said and "test.de has 20" in said
    said = call("luna_tools.evaluation.generate", copy, "--cpu", "--beam", "1", code=1)
    assert "20 hypotheses came for the 21 references" in said and "prepare the data again" in said
    assert not list((copy / "generated").glob("*.de"))


def test_corrupt_checkpoint(copy):
    newest = saved(copy, 62)
    model = sha256(copy / "model.pt")
    newest.write_bytes(newest.read_bytes()[:20000])
    assert f"{newest} cannot be loaded" in evaluate(copy, code=1)
    assert sha256(copy / "model.pt") == model and not list(copy.rglob("*.part"))


@pytest.mark.stock
def test_which_checkpoints(finished, tmp_path, capsys):
    """By updates or else by epochs; checkpoint_last.pt once, and only where it is the newest; what there is of K."""
    sources = {updates: saved(finished, updates) for updates in (31, 62, 93)}
    folder, model = tmp_path / "checkpoints", tmp_path / "model.pt"

    def averaged(last: int, **files) -> list:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, source in files.items():
            shutil.copy(sources[source], folder / f"checkpoint{name}.pt")
        average_last(tmp_path, last)
        said = capsys.readouterr().out
        inputs = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))["inputs"]
        assert all(name in said for name in inputs) and ("all there are" in said) == (len(inputs) < last)
        return [name[len("checkpoint") : -len(".pt")] for name in inputs]

    assert averaged(2, _1_31=31, _2_62=62, _last=93, _best=31) == ["_2_62", "_last"]
    assert averaged(3, _1_31=31, _2_62=62, _last=62) == ["_1_31", "_2_62"]
    assert averaged(3, _9_31=31, _10_62=62, _last=31, **{"8": 93}) == ["_9_31", "_10_62"]
    assert averaged(2, **{"9": 31, "10": 62, "_last": 62}) == ["9", "10"]
    assert averaged(2, _last=62) == ["_last"]
    assert "last_optimizer_state" not in torch.load(str(model))

    made = model.stat().st_mtime_ns
    average_last(tmp_path)  # as many as before
    assert model.stat().st_mtime_ns == made
    shutil.copy(sources[93], folder / "checkpoint_last.pt")
    average_last(tmp_path)
    assert model.stat().st_mtime_ns != made
    shutil.rmtree(folder)
    with pytest.raises(Problem, match="holds no checkpoint"):
        average_last(tmp_path)


@pytest.mark.release
def test_curve_over_tokens_per_slot(finished, tmp_path):
    """Two points of one model, and a third that is added: what is there is not translated again."""
    run = tmp_path / "run"
    shutil.copytree(finished, run, symlinks=True)
    words = run, "--cpu", "--beam", 2, "--tokens-per-slot"
    call("luna_tools.evaluation.slot_curve", *words, 1, 3)
    before = (run / "slots" / "test.beam2.lenpen1.tokens-per-slot3.de").stat().st_mtime_ns
    said = call("luna_tools.evaluation.slot_curve", *words, 3, 1, 2)
    assert said.count("is there already") == 2
    assert (run / "slots" / "test.beam2.lenpen1.tokens-per-slot3.de").stat().st_mtime_ns == before
    points = json.loads((run / "slots" / "report.json").read_text(encoding="utf-8"))["points"]
    assert [point["tokens per slot"] for point in points] == [1, 2, 3]
    assert len({point["sha256"] for point in points}) > 1 and all(point["speed"]["where"] for point in points)
    assert "| 1 | " in (run / "slots" / "report.md").read_text(encoding="utf-8")
    assert (run / "slots" / "slots.png").read_bytes().startswith(b"\x89PNG")


def test_bad_arguments_of_a_curve(finished):
    words = "luna_tools.evaluation.slot_curve", finished, "--cpu", "--tokens-per-slot"
    assert "must be at least 1, but is 0.5" in call(*words, 0.5, code=2)
    said = call(*words, 1, "--", "--model-overrides", "{}", code=2)
    assert "--model-overrides cannot be given after --" in said


def test_a_curve_needs_slots(finished, tmp_path):
    from luna_tools.evaluation import slot_curve

    state = torch.load(str(finished / "model.pt"), weights_only=False)
    state["cfg"]["model"] = Namespace(arch="transformer")
    torch.save(state, str(tmp_path / "model.pt"))
    with pytest.raises(Problem, match="is of transformer, which has no slots"):
        slot_curve.check_packs(tmp_path / "model.pt")


@pytest.fixture
def average(monkeypatch, capsys):
    """average.sh in this process: what it said."""

    def call_it(*words, code=0) -> str:
        monkeypatch.setattr(sys, "argv", ["average_checkpoints.py", *map(str, words)])
        try:
            average_checkpoints.main()
        except (SystemExit, Problem) as ended:
            assert code
            return f"{ended} {capsys.readouterr().err}"
        assert not code
        return capsys.readouterr().out

    return call_it


def test_average_of_any_folder_or_of_files(finished, tmp_path, average):
    """A folder of checkpoints that is in no run, and files under names that are not fairseq's."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    first, second = folder / "checkpoint1.pt", folder / "checkpoint2.pt"
    shutil.copy(saved(finished, 31), first)
    shutil.copy(saved(finished, 62), second)
    assert "2 checkpoint(s)" in average(folder)
    by_folder = torch.load(str(folder / "model.pt"))["model"]
    one, two = (torch.load(str(path))["model"] for path in (first, second))
    good, bad = tmp_path / "good.pt", tmp_path / "best of seed 2.pt"
    first.rename(good)
    second.rename(bad)
    average(good, bad, "--out", tmp_path / "mean.pt")
    by_files = torch.load(str(tmp_path / "mean.pt"))["model"]
    for name in one:
        if not name.endswith("._float_tensor"):  # fairseq 0.12.2 saves uninitialised memory
            torch.testing.assert_close(by_folder[name], (one[name] + two[name]) / 2)
            assert torch.equal(by_files[name], by_folder[name])
    assert "holds this already" in average(good, bad, "--out", tmp_path / "mean.pt")
    assert "files need an --out FILE" in average(good, bad, code=2)
    assert "name the files" in average(folder, code=1)
    assert f"there is no file {tmp_path / 'none'}" in average(tmp_path / "none", code=1)


def test_average_leaves_files_of_others_alone(finished, tmp_path, average):
    """Inputs among them, and what is no record of ours; an average that was not noted to its end is made again."""
    one, two, own, record = (tmp_path / name for name in ("checkpoint1.pt", "checkpoint2.pt", "model.pt", "model.json"))
    shutil.copy(saved(finished, 31), one)
    shutil.copy(saved(finished, 62), two)
    own.write_bytes(b"mine")
    for text in None, "[1]", "no JSON", '{"inputs": []}':
        if text is not None:
            record.write_text(text)
        assert f"{own} is there" in average(tmp_path, code=1)
        assert "choose another --out" in average(one, two, "--out", own, code=1)
        assert own.read_bytes() == b"mine" and record.exists() == (text is not None)
    own.unlink()
    assert f"{record} is there" in average(tmp_path, code=1)
    assert f"--out {one} is one of the files" in average(one, two, "--out", one, code=1)
    assert "must not end in .json" in average(one, two, "--out", tmp_path / "mean.json", code=1)
    record.unlink()
    average(tmp_path)
    made = json.loads(record.read_text(encoding="utf-8"))
    assert made["inputs"] == ["checkpoint1.pt", "checkpoint2.pt"] and made["updates"] == 62
    (tmp_path / "model.bin").write_bytes(b"mine")  # whose record has the same name
    assert "model.bin is there" in average(one, two, "--out", tmp_path / "model.bin", code=1)
    assert "holds this already" in average(tmp_path)
    for key in "output", "files":  # as an earlier version had it; as a command that was killed
        del made[key]
        record.write_text(json.dumps(made))
        assert ("holds this already" in average(tmp_path)) == (key == "output")
    assert "files" in json.loads(record.read_text(encoding="utf-8"))


def test_average_of_checkpoints_without_an_optimiser(finished, tmp_path, average):
    """As they are made for use alone, without the history of a training. What is none is told."""
    paths = [tmp_path / name for name in ("a.pt", "b.pt")]
    states = [torch.load(str(saved(finished, updates)), map_location="cpu") for updates in (31, 62)]
    for path, state in zip(paths, states):
        state.pop("optimizer_history"), state.pop("last_optimizer_state")
        torch.save(state, str(path))
    average(*paths, "--out", tmp_path / "mean.pt")
    assert json.loads((tmp_path / "mean.json").read_text(encoding="utf-8"))["updates"] is None
    mean = torch.load(str(tmp_path / "mean.pt"), map_location="cpu")["model"]
    for name, value in mean.items():
        if not name.endswith("._float_tensor"):  # fairseq 0.12.2 saves uninitialised memory
            torch.testing.assert_close(value, (states[0]["model"][name] + states[1]["model"][name]) / 2)
    torch.save({"weights": mean}, str(paths[0]))
    assert f"{paths[0]} is no checkpoint of fairseq" in average(*paths, "--out", tmp_path / "mean.pt", code=1)
    paths[0].write_bytes(paths[1].read_bytes()[:20000])
    said = average(*paths, "--out", tmp_path / "mean.pt", code=1)
    assert "leave it out, or give another in its place" in said and "remove it" not in said


@pytest.mark.release
def test_moses_bpe(tmp_path):
    """Pieces of the other recipe come out as text again, from generate.sh and translate.sh alike."""
    train(prepare(tmp_path, "moses-bpe"), tmp_path / "run", 30)
    call("luna_tools.training.average", tmp_path / "run", "--last", "1")
    call("luna_tools.evaluation.generate", tmp_path / "run", "--cpu", "--beam", "1", "--lenpen", "1")
    generated = (tmp_path / "run" / "generated" / "test.beam1.lenpen1.de").read_text(encoding="utf-8")
    assert len(generated.split("\n")) == 21 and "@" not in generated and "Haus" in generated
    source = tmp_path / "data" / "raw" / "test.en"
    options = ["--cpu", "--beam", "1", "--model", tmp_path / "run", source]
    # the length at which fairseq cuts off what does not end depends on the batch
    for ours, theirs in zip(call("luna_tools.evaluation.translate", *options).split("\n"), generated.split("\n")):
        assert ours.startswith(theirs) or theirs.startswith(ours)


def test_bad_arguments(tmp_path):
    assert f"there is no folder {tmp_path / 'none'}" in evaluate(tmp_path / "none", code=1)
    assert "holds no prepared data" in evaluate(tmp_path, code=1)
    assert "average.sh" in call("luna_tools.evaluation.generate", tmp_path, code=1)
    assert "--lenpen" in evaluate(tmp_path, "--lenpen", "1", "--sweep", code=2)
    assert "must be at least 1, but is 0" in call("luna_tools.training.average", tmp_path, "--last", "0", code=2)
    assert "--sweep" in evaluate(tmp_path, "--lenpens", "1", code=2)
    if not torch.cuda.is_available():
        assert "--fp16 needs a GPU" in call("luna_tools.evaluation.generate", tmp_path, "--fp16", code=1)


def test_folder_in_use_is_refused(tmp_path):
    (tmp_path / "evaluation").mkdir()
    with open(tmp_path / "evaluation" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is at work" in evaluate(tmp_path, code=1)


def test_help_needs_no_environment():
    for script in "average", "generate", "evaluate":
        command = ["bash", str(ROOT / "scripts" / f"{script}.sh"), "--help"]
        assert f"usage: {script}.sh".encode() in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
