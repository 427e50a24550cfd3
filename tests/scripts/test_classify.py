"""scripts/classify.sh: trainings of several models, a table of them, and texts that are classified."""

import json

import pytest
from commands import call, outputs
from luna_data.classification import data as classification

from fairseq_luna.data.byte_text import byte_dictionary, encode_bytes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Texts of one letter each, which is their class."""
    folder, dictionary = tmp_path_factory.mktemp("letters") / "data", byte_dictionary()
    splits = {
        split: [(encode_bytes(letter * (3 + i % 5), dictionary), name) for i in range(n) for letter, name in LETTERS]
        for split, n in (("train", 40), ("valid", 5), ("test", 5))
    }
    contents = classification.Contents("letters", "byte", dictionary, ["a", "b"], splits, 100, {})
    classification.write(folder, {}, contents, lambda message: None)
    return folder


LETTERS = ((b"x", "a"), (b"y", "b"))


def test_models_are_trained_and_compared(data, tmp_path):
    out = tmp_path / "out"
    words = "--cpu", "--updates", 30, "--out", out
    call("luna_tools.classification.command", data, *words, "--models", "luna-16")
    said = call("luna_tools.classification.command", data, *words, "--models", "linformer", "luna-16")
    runs = json.loads((out / "results.json").read_text())["runs"]
    assert [run["arm"] for run in runs] == ["linformer", "luna-16"]
    assert all(run["accuracy"] == 1 and run["texts"] == 10 and run["updates"] == 30 for run in runs)
    report = (out / "report.md").read_text()
    assert "| 7 | luna-16 |" in report and "Always guessing a gives 50.00 %" in report and "| luna-16 |" in said
    text, told = outputs(
        "luna_tools.classification.command", "--model", out / "7" / "luna-16" / "seed1", text="xxxx\n\nyyyyyyyyy\r\n"
    )
    assert [line.split("\t")[0] for line in text.splitlines()] == ["a", "-", "b"]
    assert "line 3 has 9 tokens: its first 7 are read" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a DATASET to train on, or a --model to classify with"),
        (["nothing"], "nothing is none of help, listops, listops-short, imdb, nor a folder that data-prep/ made"),
        (["--mod", "nowhere"], "ambiguous option: --mod"),
        (["--model", "nowhere"], "there is no nowhere/checkpoints/checkpoint_best.pt"),
    ],
)
def test_wrong_arguments(words, message):
    assert message in call("luna_tools.classification.command", *words, code=2 if "--model" not in words else 1)
