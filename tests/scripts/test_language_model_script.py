"""scripts/language-model.sh in little: what it leaves behind, what it adds to that, and what it refuses."""

import json
import sys

import pytest
from commands import WORDS, interpreter


@pytest.fixture
def language_models(monkeypatch):
    """The script's own class by words of the command line, within this process: imports take most of the time."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "executable", interpreter())
    from luna_tools.language_model.command import LanguageModels, parse_args

    def made(*words):
        monkeypatch.setattr(sys, "argv", ["language-model.sh", *map(str, words)])
        return LanguageModels(parse_args())

    return made


@pytest.fixture
def text(tmp_path):
    """A folder of lines of 3 to 11 words."""
    folder = tmp_path / "text"
    folder.mkdir()
    for split, size in ("train", 200), ("valid", 12), ("test", 12):
        lines = (" ".join(WORDS[(i * k * k + k) % len(WORDS)] for k in range(3 + i % 9)) for i in range(size))
        (folder / f"{split}.en").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.mark.release
def test_quick_end_to_end(language_models, text, tmp_path, capsys):
    out = tmp_path / "a run"
    words = "--quick", "--updates", 4, "--text", text, "--out", out, "--cpu"
    language_models(*words, "--models", "luna-decaying").run()
    first = out / "luna-decaying" / "context64-seed1"
    known = {path: path.stat().st_mtime_ns for path in [*first.rglob("*"), *(out / "data").rglob("*")]}
    capsys.readouterr()
    language_models(*words).run()  # the second model alone is new

    assert known == {path: path.stat().st_mtime_ns for path in known}
    said = capsys.readouterr().out
    assert said.count("updates done") == 1 and "perplexity" in said
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert [run["arm"] for run in results["runs"]] == ["luna-decaying", "transformer"]
    for run in results["runs"]:
        assert (run["context"], run["seed"], run["updates"], run["context window"]) == (64, 1, 4, 48)
        assert 5 < run["perplexity"] < 1000 and run["parameters"] > 100_000
        assert run["tokens a second"] > 0 and run["peak memory (bytes)"] > 2**26
        assert run["versions"]["torch"] and run["machine"]["cores"]
        assert "--context-window 48" in run["commands"][0] and "--sampling" in run["commands"][1]
        assert len(run["continuations"]) == 10
        assert all(written.startswith(begun) for begun, written in run["continuations"])
    assert results["settings"]["--updates"] == 4 and len(results["commands"]) == 2
    report = (out / "report.md").read_text(encoding="utf-8").splitlines()
    assert [line.split(" | ")[:3] for line in report[2:4]] == [
        ["| luna-decaying", "64", "1"],
        ["| transformer", "64", "1"],
    ]
    assert sum(" | " in line for line in (out / "continuations.txt").read_text().splitlines()) == 22

    from fairseq_luna.errors import Problem

    with pytest.raises(Problem, match="--updates was 4, now 5.*another --out"):
        language_models(*words, "--updates", 5).run()


def test_what_it_refuses(language_models, text, tmp_path, capsys):
    for words, message in (
        (["--models", "lstm"], "choose from 'luna-decaying', 'luna-uniform', 'transformer'"),
        (["--context", "4096"], "must be 32 to 2048 tokens, as many as a batch has, but is 4096"),
        (["--updates", "0"], "must be at least 1, but is 0"),
        (["--lang", "fr"], "the embedded corpus has en and de; give other text by --text"),
    ):
        with pytest.raises(SystemExit):
            language_models(*words)
        assert message in capsys.readouterr().err

    from fairseq_luna.errors import Problem

    with pytest.raises(Problem, match="there is no .*train.de: give --text a folder with train.de, valid.de, test.de"):
        language_models("--text", text, "--lang", "de", "--out", tmp_path / "run").run()
