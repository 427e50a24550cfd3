"""Data for the classification of long texts: ListOps, help pages and film reviews, as fairseq reads them."""

import json
import multiprocessing
import os
import signal
import subprocess
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Dict, List, Tuple

import mirror
import numpy as np
import pytest
from commands import HANGS, ROOT, call, wait_until

from fairseq.data import Dictionary, data_utils  # isort: skip
from fairseq.tasks.sentence_prediction import SentencePredictionTask  # isort: skip

from luna_data.classification import data as classification
from luna_data.classification import listops, prepare_help_pages, prepare_imdb, prepare_listops
from luna_data.help import pages as help_pages

from fairseq_luna.data.byte_text import byte_dictionary, encode_bytes
from fairseq_luna.errors import Problem

SMALL = listops.Shape(5, 40, 4)
SIZES = {"train": 130, "valid": 20, "test": 30}


def read(out: Path, split: str) -> List[Tuple[List[str], str]]:
    """The tokens of each text and its class, through fairseq's own readers."""
    sides = []
    for folder in "input0", "label":
        place = out / "data-bin" / folder
        words = Dictionary.load(str(place / "dict.txt"))
        data = data_utils.load_indexed_dataset(str(place / split), words)
        sides.append([[words[number] for number in data[i]] for i in range(len(data))])
    return [(text, name) for text, (name,) in zip(*sides)]


def read_bytes(out: Path, split: str) -> List[Tuple[bytes, str]]:
    return [(bytes(map(int, text)), name) for text, name in read(out, split)]


def files(out: Path) -> Dict[str, bytes]:
    return {
        name: (out / name).read_bytes()
        for name in (*classification.FILES, "data-bin/input0/dict.txt", "data-bin/label/dict.txt")
    }


def manifest_of(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


# ---- ListOps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("[MAX 4 3 [MIN 2 3 ] 1 0 ]", 4),
        ("[MED 1 2 ]", 1),
        ("[MED 2 9 5 1 ]", 3),
        ("[MED 9 0 5 ]", 5),
        ("[SM 9 8 [SM 7 6 ] ]", 0),
        ("7", 7),
    ],
)
def test_value(text, value):
    words = text.split()
    tree, rest = parse(words)
    assert not rest and list(listops.spell(tree)) == words
    assert listops.evaluate(tree) == listops.run(words) == value


def parse(words: List[str]) -> tuple:
    """The tree at the beginning of the words, and the words after it."""
    word, rest = words[0], words[1:]
    if word[0] != "[":
        return int(word), rest
    arguments = []
    while rest[0] != "]":
        argument, rest = parse(rest)
        arguments.append(argument)
    return (word[1:], arguments), rest[1:]


def levels(tree) -> int:
    return 1 if isinstance(tree, int) else 1 + max(map(levels, tree[1]))


def operations(tree) -> list:
    return [] if isinstance(tree, int) else [tree, *(found for each in tree[1] for found in operations(each))]


@pytest.mark.stock
def test_listops_are_as_specified():
    made = listops.make_block(listops.FULL, 3, 0)
    trees = [parse([listops.WORDS[number] for number in text])[0] for text, _ in made]
    assert all(500 < len(text) < 2000 for text, _ in made) and max(len(text) for text, _ in made) > 1500
    assert max(map(levels, trees)) == 10
    found = [operation for tree in trees for operation in operations(tree)]
    assert {len(arguments) for _, arguments in found} == set(range(2, 11))
    shares = [sum(name == other for name, _ in found) / len(found) for other in ("MAX", "MIN", "MED", "SM")]
    assert sum(shares) == 1 and min(shares) > 0.23
    assert {value for _, value in made} == set(range(10))
    for tree, (_, value) in zip(trees, made):
        assert listops.evaluate(tree) == value
    for name, arguments in found[:500]:
        if name == "MED" and all(isinstance(each, int) for each in arguments):
            assert listops.evaluate((name, arguments)) == int(np.median(arguments))
    assert listops.make_block(listops.FULL, 3, 0) == made != listops.make_block(listops.FULL, 4, 0)


def test_a_wrong_value_is_found(monkeypatch):
    monkeypatch.setattr(listops, "run", lambda words: 11)
    with pytest.raises(Problem, match=r"the tree gives \d, but its text 11: \[M"):
        listops.make_block(SMALL, 1, 0)


def test_no_text_comes_twice():
    few = listops.Shape(4, 4, 2, 2)  # of which there are 400
    texts = [text for text, _ in islice(listops.samples(few, 1, 1), 300)]
    assert len(set(texts)) == 300


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Small ListOps by one process."""
    out = tmp_path_factory.mktemp("listops") / "out"
    prepare_listops.prepare(out, SMALL, SIZES, 1, 1)
    return out


@pytest.mark.stock
def test_listops_data(made, tmp_path, capsys):
    splits = {split: read(made, split) for split in SIZES}
    assert {split: len(texts) for split, texts in splits.items()} == SIZES
    for words, name in (sample for texts in splits.values() for sample in texts):
        assert listops.run(words) == int(name) and 5 <= len(words) <= 40
    assert len({tuple(words) for texts in splits.values() for words, _ in texts}) == sum(SIZES.values())
    manifest = manifest_of(made)
    assert (
        manifest["texts"] == SIZES and manifest["token"] == "word" and list(manifest["classes"]) == list("0123456789")
    )
    counts = {name: sum(other == name for _, other in splits["test"]) for name in manifest["classes"]}
    assert {name: count["test"] for name, count in manifest["classes"].items()} == counts
    assert manifest["always guessing the largest class gives"]["accuracy"] == round(max(counts.values()) / 30, 4)

    # neither the number of processes matters nor what was there
    before = files(made)
    prepare_listops.prepare(tmp_path / "out", SMALL, SIZES, 2, 1)
    assert files(tmp_path / "out") != before
    capsys.readouterr()
    prepare_listops.prepare(tmp_path / "out", SMALL, SIZES, 1, 2)
    assert "preparing again: seed was 2, now 1" in capsys.readouterr().out
    assert files(tmp_path / "out") == before
    times = [(tmp_path / "out" / name).stat().st_mtime_ns for name in before]
    prepare_listops.prepare(tmp_path / "out", SMALL, SIZES, 1, 1)
    assert "holds this already" in capsys.readouterr().out
    assert times == [(tmp_path / "out" / name).stat().st_mtime_ns for name in before]
    with open(tmp_path / "out" / "data-bin" / "input0" / "valid.bin", "r+b") as file:
        file.truncate(9)
    prepare_listops.prepare(tmp_path / "out", SMALL, SIZES, 1, 1)
    assert files(tmp_path / "out") == before


@pytest.mark.stock
def test_fairseq_reads_it(made):
    """Through its task: the class is the number of its name among the classes."""
    words, labels = (Dictionary.load(str(made / "data-bin" / folder / "dict.txt")) for folder in ("input0", "label"))
    settings = {"data": str(made / "data-bin"), "max_positions": 40, "seed": 1, "no_shuffle": True, "init_token": None}
    settings.update(shorten_method="none", shorten_data_split_list="", regression_target=False)
    settings.update(separator_token=None, add_prev_output_tokens=False, d2v2_multi=False)
    task = SentencePredictionTask(SimpleNamespace(**settings), words, labels)
    data = task.load_dataset("valid")
    batch = data.collater([data[i] for i in range(len(data))])
    expected = read(made, "valid")
    assert batch["target"].view(-1).tolist() == [int(name) for _, name in expected]
    assert batch["net_input"]["src_lengths"].tolist() == [len(text) for text, _ in expected]


def test_killed_run(made, tmp_path):
    out = tmp_path / "out"
    process = multiprocessing.get_context("fork").Process(
        target=prepare_listops.prepare, args=(out, listops.FULL, prepare_listops.SIZES[False], 1, 1)
    )
    process.start()
    wait_until(lambda: (out / "data-bin.part" / "input0" / "train.bin").exists())
    os.kill(process.pid, signal.SIGKILL)
    process.join(HANGS)
    assert not (out / "manifest.json").exists() and not (out / "data-bin").exists()
    prepare_listops.prepare(out, SMALL, SIZES, 1, 1)
    assert files(out) == files(made) and not list(out.rglob("*.part"))


# ---- texts as bytes --------------------------------------------------------------------------------------------------

ODD = [b"one\r\ntwo\r", b"\xff\xfe\xc3( \xed\xa0\x80", "€😀\u2028".encode(), b"\0", b"\n", b" ", bytes(range(256))]


def write_texts(out: Path, texts: List[bytes]) -> None:
    dictionary = byte_dictionary()
    samples = {
        split: [(encode_bytes(text, dictionary), "ab"[i % 2]) for i, text in enumerate(texts)]
        for split in ("train", "valid", "test")
    }
    contents = classification.Contents("odd", "byte", dictionary, "ab", samples, 3 * len(texts), {})
    classification.write(out, {}, contents, print)


@pytest.mark.stock
def test_any_bytes_come_back(tmp_path):
    write_texts(tmp_path, ODD)
    for split in "train", "valid", "test":
        assert read_bytes(tmp_path, split) == [(text, "ab"[i % 2]) for i, text in enumerate(ODD)]
    assert manifest_of(tmp_path)["longest text, in tokens"] == 256


def test_an_empty_text_is_refused(tmp_path):
    with pytest.raises(Problem, match="train text 2, of the class b, is empty"):
        write_texts(tmp_path, [b"one", b""])
    with pytest.raises(Problem, match="there are no texts for a split"):
        write_texts(tmp_path, [])
    assert not (tmp_path / "manifest.json").exists()


# ---- help pages ------------------------------------------------------------------------------------------------------


@pytest.mark.stock
def test_help_pages(tmp_path, capsys):
    out = tmp_path / "out"
    prepare_help_pages.prepare(out, 3000, 1)
    manifest = manifest_of(out)
    assert f"{manifest['texts']['train']:>9,}  train texts, of up to 3,000 bytes" in capsys.readouterr().out
    command = ["luna_data.classification.prepare_help_pages", "--out", out, "--length"]
    assert f"{out} holds this already" in call(*command, "3000")
    assert "must be at least 1, but is 0" in call(*command, "0", code=2)
    assert manifest["longest text, in tokens"] == 3000 and manifest["texts"]["test"] > 70
    assert all(min(count.values()) > 0 for count in manifest["classes"].values())
    assert 0.3 < manifest["always guessing the largest class gives"]["accuracy"] < 0.35
    texts = read_bytes(out, "test")
    assert all(1500 <= len(text) <= 3000 for text, _ in texts)
    # what they tell of differs by class
    share = {
        name: np.mean([b"spreadsheet" in text or b"cell" in text for text, other in texts if other == name])
        for name in ("calc", "basic", "writer")
    }
    assert share["calc"] > 0.7 > max(share["basic"], share["writer"])


def test_pages_are_held_out():
    sentences, pages = help_pages.sentences(), help_pages.pages()
    assert len(pages) > 2400 and max(max(numbers) for numbers in pages.values()) < len(sentences)
    splits = prepare_help_pages.split_pages(pages, sentences, 1)
    names, lines, size = ({split: set() for split in splits} for _ in range(3))
    for split, classes in splits.items():
        held = [page for held in classes.values() for page in held]
        names[split] = {name for name, _ in held}
        lines[split] = {sentences[number] for _, numbers in held for number in numbers}
        size[split] = sum(len(sentences[number]) for _, numbers in held for number in numbers)
    for one, other in ("train", "valid"), ("train", "test"), ("valid", "test"):
        assert not names[one] & names[other] and not lines[one] & lines[other]
    assert all(0.08 < size[split] / sum(size.values()) < 0.13 for split in ("valid", "test"))
    assert splits == prepare_help_pages.split_pages(pages, sentences, 1)
    assert splits != prepare_help_pages.split_pages(pages, sentences, 2)
    assert list(prepare_help_pages.cut(b"123456789", 6)) == [b"123456", b"789"]
    assert list(prepare_help_pages.cut(b"12345678", 6)) == [b"123456"]


# ---- film reviews ----------------------------------------------------------------------------------------------------

REVIEWS = {
    f"{part}/{name}/{number}_7": f"{part} {name} {number}<br />\r\n".encode() + b"\xff" * 90
    for part in ("train", "test")
    for name in ("pos", "neg")
    for number in range(20)
}


@pytest.fixture
def served(tmp_path):
    """A mirror with a small archive of reviews."""
    mirror.make_imdb(tmp_path / "mirror", REVIEWS)
    with mirror.serve(tmp_path / "mirror") as server:
        yield server


def refused(served, out: Path) -> str:
    """What is said of an archive that will not do."""
    with pytest.raises(Problem) as caught:
        prepare_imdb.prepare(out, 100, 1, served.url)
    assert not (out / "manifest.json").exists() and not (out / "data-bin").exists()
    return str(caught.value)


@pytest.mark.stock
def test_reviews(served, tmp_path, capsys):
    out = tmp_path / "out"
    served.most = 300
    assert "the connection ended at 300 of " in refused(served, out)
    served.most = 0
    prepare_imdb.prepare(out, 100, 1, served.url)
    assert served.requests[-1] == ("aclImdb_v1.tar.gz", "bytes=300-")
    found = {split: read_bytes(out, split) for split in ("train", "valid", "test")}
    assert {split: len(texts) for split, texts in found.items()} == {"train": 36, "valid": 4, "test": 40}
    texts = {(name.split("/")[1], text[:100]) for name, text in REVIEWS.items() if name.startswith("test")}
    assert {(name, text) for text, name in found["test"]} == texts
    learnt = [(name.split("/")[1], text[:100]) for name, text in REVIEWS.items() if name.startswith("train")]
    assert sorted((name, text) for split in ("train", "valid") for text, name in found[split]) == sorted(learnt)
    assert [name for _, name in found["valid"]] == ["neg", "neg", "pos", "pos"]
    manifest = manifest_of(out)
    assert manifest["sources"][0]["official"] is False and manifest["sources"][0]["url"].startswith(served.url)
    assert manifest["always guessing the largest class gives"]["accuracy"] == 0.5

    asked = len(served.requests)
    prepare_imdb.prepare(out, 100, 1, served.url)
    assert "holds this already" in capsys.readouterr().out and len(served.requests) == asked
    prepare_imdb.prepare(out, 100, 2, served.url)
    assert read_bytes(out, "valid") != found["valid"] and read_bytes(out, "test") == found["test"]


def test_an_archive_that_will_not_do(served, tmp_path, capsys):
    path, out = served.folder / "aclImdb_v1.tar.gz", tmp_path / "out"
    good = path.read_bytes()
    path.write_bytes(good[:-9])
    assert f"what {served.url}/{path.name} gave was removed, for it has the wrong sum" in refused(served, out)
    assert "its sha256 is" in capsys.readouterr().out and not list((out / "downloads").glob("*.gz*"))
    path.write_bytes(good[: len(good) // 2])
    mirror.sign(served.folder)
    said = refused(served, out)
    assert f"{out / 'downloads' / path.name} cannot be read (" in said and "remove it, and it is fetched again" in said
    for name, text, word in ("train/neg/99_1", b"", "is empty"), ("train/extra/1_1", b"x", "has 0 reviews in"):
        reviews = {key: value for key, value in REVIEWS.items() if "train/neg" not in key}
        mirror.make_imdb(served.folder, {**reviews, name: text})
        (out / "downloads" / path.name).unlink()
        assert word in refused(served, out)
    with pytest.raises(Problem, match="has 20 reviews in aclImdb/train/neg, but should have 12500"):
        mirror.make_imdb(served.folder, REVIEWS)
        prepare_imdb.read(path, 100, prepare_imdb.REVIEWS)


@pytest.mark.parametrize("name", ["listops", "help-pages", "imdb"])
def test_help_needs_no_environment(name):
    script = ROOT / "data-prep" / f"prepare-{name}.sh"
    shown = subprocess.run(["bash", str(script), "--help"], stdout=subprocess.PIPE, check=True, timeout=HANGS).stdout
    assert f"usage: prepare-{name}.sh".encode() in shown and b"--out" in shown
