"""The preparation of data through its real commands: text of one's own, and WMT14 from a mirror on the loopback."""

import fcntl
import hashlib
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Callable, Dict, List

import mirror
import pytest
from commands import ENV, HANGS, ROOT, call, processes_with, start, stop_when, wait_until
from tiny import each

from fairseq.data import Dictionary, data_utils  # isort: skip

from luna_data.downloads import Archive, Downloads
from luna_data.parallel.prepare_wmt14 import check_lines
from luna_data.parallel.text import Text

from fairseq_luna.files import remove
from fairseq_luna.text import recipes

PAIRS = 4500  # of the mirror: several blocks of lines
LEARNT = {"sentencepiece": "spm.model", "moses-bpe": "bpe.codes"}


def prepare(folder: Path, *args, **options) -> str:
    """prepare-corpus.sh on the text in `folder`."""
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", folder / split)]
    languages = ["--source", "en", "--target", "de", "--vocab-size", "400", "--workers", "1"]
    return call("luna_data.parallel.prepare_corpus", *splits, *languages, "--out", folder / "out", *args, **options)


def wmt14(server, out: Path, *args) -> list:
    """prepare-wmt14-en-de.sh with a mirror."""
    return ["luna_data.parallel.prepare_wmt14", "--mirror", server.url, "--out", out, "--vocab-size", "1500", *args]


def read(path: Path) -> List[str]:
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def manifest_of(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text(encoding="utf-8"))


def contents(out: Path) -> Dict[str, bytes]:
    """What a run has made, but for its logs and notes."""
    folders = "raw", "tokens", "pieces", "data-bin"
    files = [path for folder in folders for path in (out / folder).glob("*") if path.name != "preprocess.log"]
    files += [path for path in (out / "spm.model", out / "bpe.codes") if path.exists()]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def times(out: Path) -> Dict[str, int]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.name != ".lock"}


def binarised(out: Path, split: str, lang: str) -> List[str]:
    """The lines of pieces that fairseq reads."""
    words = Dictionary.load(str(out / "data-bin" / f"dict.{lang}.txt"))
    data = data_utils.load_indexed_dataset(str(out / "data-bin" / f"{split}.en-de.{lang}"), words)
    return [words.string(data[i]) for i in range(len(data))]


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "own corpus"
    folder.mkdir()
    for lang, words in ("en", "the cat sat on a mat"), ("de", "die Katze saß auf einer Matte"):
        for split, size in ("train", 200), ("valid", 5), ("test", 7):
            lines = [f"{words} {i}\u00a0x {words[i % 7 :].strip()}" for i in range(size)]
            (folder / f"{split}.{lang}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


# ---- text of one's own -----------------------------------------------------------------------------------------------


def test_prepare_own_corpus(corpus):
    prepare(corpus)
    out = corpus / "out"
    manifest = manifest_of(out)
    assert manifest["lines"]["train.en"] == 200 and manifest["lines"]["test.de"] == 7
    assert manifest["lines that do not survive pieces and back"] == 0
    assert manifest["training pairs"] == {"read": 200, "dropped": dict.fromkeys(RULES, 0), "kept": 200}
    assert set(manifest["steps"]) == {"text", "vocabulary", "pieces", "data-bin"}
    assert all(step["lines per second"] > 0 for step in manifest["steps"].values())
    if sys.platform == "linux":
        assert all(step["peak memory MB"] > 0 for step in manifest["steps"].values())
    assert manifest["versions"]["sacremoses"] and manifest["versions"]["sentencepiece"]
    dictionary = {line.split(" ")[0] for line in read(out / "data-bin" / "dict.de.txt")}
    pieces = read(out / "pieces" / "train.de")
    assert len(pieces) == 200 and {piece for line in pieces for piece in line.split()} <= dictionary
    for name in "train.en", "train.de", "test.de":
        assert read(out / "raw" / name) == read(corpus / name)
    # with the workaround for data of more than 2 GiB
    assert re.search("user_dir='[^']*fairseq_luna'", (out / "preprocess.log").read_text(encoding="utf-8"))

    before = times(out)
    assert "holds this already" in prepare(corpus)
    assert times(out) == before

    # the bounds of the lengths concern the pieces and what comes after them alone
    lengths = ([len(line.split()) for line in read(out / "pieces" / f"train.{lang}")] for lang in ("en", "de"))
    middle = sorted(max(pair) / min(pair) for pair in zip(*lengths))[100]
    assert f"max_ratio was 9.0, now {middle}" in prepare(corpus, "--max-ratio", middle)
    after = times(out)
    assert {name for name in ("raw", "spm.model", "pieces", "data-bin") if after[name] != before[name]} == {
        "pieces",
        "data-bin",
    }
    assert 0 < manifest_of(out)["training pairs"]["dropped"][RULES[4]] < 200

    with open(corpus / "test.en", "ab") as file:
        file.write(b"one more\n")
    said = prepare(corpus, code=1)
    assert "8 lines" in said and "7" in said and str(corpus / "test.en") in said
    assert not (out / "manifest.json").exists()


RULES = (
    "not UTF-8",
    "a side is empty",
    "a side has too many characters",
    "a side has too many pieces",
    "one side has too many times the pieces of the other",
)

# what one side is, of a pair that is dropped, and the rule that drops it
USELESS = {
    4: (b"4 \xff 4", RULES[0]),
    9: (b"", RULES[1]),
    14: (b" \t \xe2\x80\xa8 ", RULES[1]),
    19: ("\u00a0".encode(), RULES[1]),
    24: (b"24 " + b"x" * 300_000 + b" 24", RULES[2]),
    29: (b"29 " + b"q . " * 450 + b"29", RULES[3]),
    34: (b"34 " + b"q . " * 140 + b"34", RULES[4]),
}

# what one side is, of a pair that is kept, and what becomes of it
ODD = {
    41: (b"41\tone \t two 41\r", "41 one two 41"),
    42: (b"\xc2\x85 42  one\x00\x1f two 42 \r", "42 one two 42"),
    43: ("43 one\u2028\u2029two\x0b\x0c 43".encode(), "43 one two 43"),
    44: ("44 one\u00a0two\u3000 €😀 44".encode(), "44 one\u00a0two\u3000 €😀 44"),
    45: (b"45 one\rtwo 45", "45 one two 45"),
}


@pytest.mark.stock
@pytest.mark.parametrize("recipe, bad_side", [("sentencepiece", "en"), ("moses-bpe", "de")])
def test_bad_lines(corpus, recipe, bad_side):
    """Each line carries its number at both ends: what is dropped is counted, and translations stay side by side."""
    lines = {
        lang: [f"{i} {words} {i}".encode() for i in range(60)] for lang, words in (("en", "a cat"), ("de", "eine"))
    }
    for number, (line, _) in [*USELESS.items(), *ODD.items()]:
        lines[bad_side][number] = line
    for lang in lines:
        (corpus / f"train.{lang}").write_bytes(b"".join(line + b"\n" for line in lines[lang] * 5))
    held_out = b"one\ttwo\r\n\r\n\n \xe2\x80\xa8\nfive\r\n"
    for name in f"valid.{bad_side}", f"test.{bad_side}":
        (corpus / name).write_bytes(held_out + (b"" if "valid" in name else b"6\n7"))
    prepare(corpus, "--recipe", recipe, "--vocab-size", "350", "--max-length", "850")

    out = corpus / "out"
    manifest = manifest_of(out)
    dropped = {rule: 5 * sum(rule == other for _, other in USELESS.values()) for rule in RULES}
    assert manifest["training pairs"] == {"read": 300, "dropped": dropped, "kept": 300 - 5 * len(USELESS)}
    assert manifest["blank lines kept"] == {
        f"{split}.{lang}": 3 * (lang == bad_side) for split in ("valid", "test") for lang in ("en", "de")
    }
    raw = {lang: read(out / "raw" / f"train.{lang}") for lang in ("en", "de")}
    kept_by_text = [i for i in range(60) if USELESS.get(i, ("", ""))[1] not in RULES[:3]] * 5
    assert [[line.split()[0], line.split()[-1]] for lang in raw for line in raw[lang]] == 2 * [
        [str(i), str(i)] for i in kept_by_text
    ]
    for _, text in ODD.values():
        assert text in raw[bad_side]
    for split, size in ("valid", 5), ("test", 7):
        assert read(out / "raw" / f"{split}.{bad_side}")[:5] == ["one two", "", "", "", "five"]
        assert [len(binarised(out, split, lang)) for lang in ("en", "de")] == [size, size]
        assert [bool(line) for line in binarised(out, split, bad_side)[:5]] == [True, False, False, False, True]

    used = recipes.load(out)
    assert used.name == recipe and (used.source, used.target) == ("en", "de")
    kept = [i for i in range(60) if i not in USELESS] * 5
    for lang in "en", "de":
        texts = used.decode([line.split(" ") for line in binarised(out, "train", lang)])
        assert [(line.split()[0], line.split()[-1]) for line in texts] == [(str(i), str(i)) for i in kept]


def test_broken_utf8_of_a_test_set_is_named(corpus):
    lines = (corpus / "test.de").read_bytes().split(b"\n")
    lines[4] = b"\xfc"
    (corpus / "test.de").write_bytes(b"\n".join(lines))
    assert f"{corpus / 'test.de'}, line 5 is not UTF-8" in prepare(corpus, code=1)
    assert not (corpus / "out" / "raw").exists() and not (corpus / "out" / "manifest.json").exists()


def test_text_that_cannot_be_used(corpus):
    short = read(corpus / "train.de")[:-3]
    (corpus / "train.de").write_text("".join(line + "\n" for line in short), encoding="utf-8")
    said = prepare(corpus, code=1)
    assert "train.en has 200 lines" in said and "train.de has 197" in said
    for lang in "en", "de":
        (corpus / f"train.{lang}").write_bytes(b"\n" * 3)
    assert "none of 3 train pairs is left: 3 dropped because a side is empty" in prepare(corpus, code=1)
    for lang in "en", "de":
        (corpus / f"train.{lang}").write_bytes(b"")
    assert f"{corpus / 'train.en'} is empty" in prepare(corpus, code=1)
    (corpus / "train.de").unlink()
    assert f"there is no file {corpus / 'train.de'}" in prepare(corpus, code=1)
    assert "--source and --target are both de" in prepare(corpus, "--source", "de", code=1)


def test_long_lines_of_a_test_set_are_kept_and_told(corpus):
    with open(corpus / "valid.en", "a") as source, open(corpus / "valid.de", "a") as target:
        source.write("cat " * 600 + "\n")
        target.write("Katze " * 20 + "\n")
    said = prepare(corpus, "--max-length", "500")
    assert "1  pairs in valid with more than 500 pieces, kept" in said
    assert manifest_of(corpus / "out")["pairs over the length, kept"] == {"valid": 1, "test": 0}
    assert len(read(corpus / "out" / "pieces" / "valid.en")) == 6
    for value in "nan", "0.5":
        assert f"must be at least 1, but is {value}" in prepare(corpus, "--max-ratio", value, code=2)


def test_interrupted_at_once_while_learning(corpus):
    """Not when the learning is done, which takes hours on a large text."""
    for lang in "en", "de":
        lines = (f"{number:x}{number * 7919:x} {number * 104729:x}" for number in range(20_000))
        (corpus / f"train.{lang}").write_text("".join(f"{line}\n" for line in lines) * 2)
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", corpus / split)]
    options = ["--recipe", "moses-bpe", "--vocab-size", "30000", "--source", "en", "--target", "de", "--workers", "1"]
    process = start("luna_data.parallel.prepare_corpus", *splits, *options, "--out", corpus / "out")
    beside = corpus / "out" / "bpe.codes.part"
    said = stop_when(beside.exists, process, signal.SIGINT)[1]
    assert process.returncode == 130 and "the same command goes on from here" in said and "Traceback" not in said
    assert not (corpus / "out" / "bpe.codes").exists()


def test_another_model_cuts_the_text_anew(corpus):
    """Nothing is taken for made by a model or a version that it was not made by."""
    prepare(corpus)
    steps = corpus / "out" / "steps.json"
    noted = steps.read_text()
    version = manifest_of(corpus / "out")["versions"]["sentencepiece"]
    assert f'"version of sentencepiece": "{version}"' in noted
    notes = json.loads(noted)
    notes["vocabulary"]["origin"] = "as by another version"
    steps.write_text(json.dumps(notes))
    (corpus / "out" / "pieces" / "train.en").write_text("stale\n")
    assert "learning a joint vocabulary" in prepare(corpus)
    assert "stale" not in read(corpus / "out" / "pieces" / "train.en")


@pytest.mark.parametrize("recipe", LEARNT)
def test_vocabulary_of_other_data(corpus, recipe):
    """The same pieces under the same numbers, whatever the text."""
    prepare(corpus, "--recipe", recipe)
    theirs, out = corpus / "out", corpus / "other"
    for split in "train", "valid", "test":
        for lang in "en", "de":
            (corpus / f"new-{split}.{lang}").write_text("the dog sat 17 times\n", encoding="utf-8")
    splits = [word for split in ("train", "valid", "test") for word in (f"--{split}", corpus / f"new-{split}")]
    command = [
        "luna_data.parallel.prepare_corpus",
        *splits,
        "--source",
        "en",
        "--target",
        "de",
        "--workers",
        "1",
        "--out",
        out,
    ]
    command += ["--recipe", recipe]
    said = call(*command, "--vocabulary-of", theirs)
    assert "learning" not in said
    assert (out / LEARNT[recipe]).read_bytes() == (theirs / LEARNT[recipe]).read_bytes()
    for lang in "en", "de":
        name = f"data-bin/dict.{lang}.txt"
        assert (out / name).read_bytes() == (theirs / name).read_bytes()
    assert manifest_of(out)["vocabulary"] == manifest_of(theirs)["vocabulary"]
    assert "vocab_size" in manifest_of(theirs)["settings"] and "vocab_size" not in manifest_of(out)["settings"]
    assert "holds this already" in call(*command, "--vocabulary-of", theirs)
    assert "holds no prepared data" in call(*command, "--vocabulary-of", corpus, code=1)
    other = next(name for name in LEARNT if name != recipe)
    of_words = call(*command, "--vocabulary-of", theirs, "--recipe", other, code=1)
    assert f"is of --recipe {recipe}, but here it is {other}" in of_words
    assert "not allowed with" in call(*command, "--vocabulary-of", theirs, "--vocab-size", 300, code=2)


def test_folder_of_others_or_in_use(corpus):
    (corpus / "out").mkdir()
    (corpus / "out" / "mine").touch()
    assert "choose another --out" in prepare(corpus, code=1)
    (corpus / "out" / "mine").unlink()
    with open(corpus / "out" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another run is at work" in prepare(corpus, code=1)
    assert [path.name for path in (corpus / "out").iterdir()] == [".lock"]


# ---- WMT14 from a mirror ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mirror")
    mirror.make(folder, pairs=PAIRS, held_out=20)
    with mirror.serve(folder) as served:
        yield served


@pytest.fixture
def own_server(tmp_path):
    """A mirror that a test may spoil."""
    mirror.make(tmp_path / "mirror", pairs=9, held_out=5)
    with mirror.serve(tmp_path / "mirror") as served:
        yield served


@pytest.fixture(scope="module")
def finished(server, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a whole run with a recipe."""
    made: Dict[str, Path] = {}

    def finish(recipe: str) -> Path:
        if recipe not in made:
            folder = tmp_path_factory.mktemp("a folder with spaces")
            made[recipe] = folder / "pieces" / recipe
            call(*wmt14(server, Path("pieces") / recipe, "--recipe", recipe, "--workers", "1"), cwd=folder)
        return made[recipe]

    return finish


@pytest.mark.stock
@pytest.mark.parametrize("recipe", LEARNT)
def test_wmt14(server, finished, recipe):
    out = finished(recipe)
    manifest = manifest_of(out)
    assert manifest["settings"]["recipe"] == recipe
    pairs = manifest["training pairs"]
    assert (
        pairs["read"] == PAIRS
        and pairs["kept"] + sum(pairs["dropped"].values()) == PAIRS
        and pairs["kept"] > 0.7 * PAIRS
    )
    assert manifest["lines"] == {f"{split}.{lang}": n for split, n in LINES.items() for lang in ("en", "de")}
    assert set(manifest["sources"]) == {*mirror.TRAINING, "test.tgz", "test-full.tgz"}
    assert not any(held["official"] for held in manifest["held out"].values())
    assert not any(source["official"] for source in manifest["sources"].values())
    assert manifest["dictionary of fairseq"] == len(Dictionary.load(str(out / "data-bin" / "dict.en.txt")))
    assert read(out / "data-bin" / "dict.en.txt") == read(out / "data-bin" / "dict.de.txt")
    for split in LINES:
        for lang in "en", "de":
            expected = mirror.lines(f"{split}.{lang}", LINES[split])
            assert read(out / "raw" / f"{split}.{lang}") == expected
            lines = binarised(out, split, lang)
            assert lines == read(out / "pieces" / f"{split}.{lang}") or split == "test"  # which has unknown characters
            assert len(lines) == (pairs["kept"] if split == "train" else len(expected))
    used = recipes.load(out)
    source, reference = (read(out / "raw" / f"test.{lang}") for lang in ("en", "de"))
    assert [" ".join(line) for line in used.encode(source)] == read(out / "pieces" / "test.en")
    back = used.decode([line.split(" ") for line in read(out / "pieces" / "test.de")])
    assert sum(a == b for a, b in zip(back, reference)) >= (20 if recipe == "sentencepiece" else 17)
    if recipe == "sentencepiece":
        assert manifest["lines that do not survive pieces and back"] == 0 and manifest["vocabulary"] == 1500
    else:
        assert len(read(out / "bpe.codes")) == 1501 and "@-@" in " ".join(read(out / "tokens" / "train.en")).split()
    assert not list(out.rglob("*.part"))

    # a second run reads nothing from the network and changes nothing
    before, asked = times(out), len(server.requests)
    assert "holds this already" in call(*wmt14(server, out, "--recipe", recipe, "--workers", "3"))
    assert times(out) == before and len(server.requests) == asked

    # sacrebleu itself finds the test set in the cache
    command = [sys.executable, "-m", "sacrebleu", "-t", "wmt14/full", "-l", "en-de", "--echo", "ref"]
    env = {**ENV, "SACREBLEU": str(out / "downloads" / "sacrebleu")}
    assert subprocess.check_output(command, env=env, encoding="utf-8").splitlines() == reference


LINES = {"train": PAIRS, "valid": 20, "test": 20}


def kill_within(step: Path, *command, **options) -> None:
    """SIGKILL while a step of a command is at work; a busy machine may send it too late, and then once more."""
    part = step.with_name(f"{step.name}.part")
    for _ in range(9):
        process = start(*command, **options)
        wait_until(lambda: part.exists() or process.poll() is not None)  # noqa: B023  it is asked for here alone
        process.kill()
        said = process.communicate(timeout=HANGS)
        if not step.exists():
            assert process.returncode == -signal.SIGKILL, said
            return
        remove(step)
        remove(step.parent / "manifest.json")
    raise AssertionError(f"{step} was always there before the signal")


@pytest.mark.release
@pytest.mark.stock
def test_killed_runs_and_a_full_disk_leave_nothing_half_done(server, finished, tmp_path):
    """In the end all is as a run by one process that nothing disturbed has made it."""
    out = tmp_path / "out"
    command = wmt14(server, out, "--recipe", "moses-bpe", "--workers", "2")
    for size in 30_000, 150_000:  # full in the middle of a download, and of raw/
        said = call(*command, code=1, preexec_fn=lambda size=size: limit_files(size))
        assert f"{out} cannot take more (File too large)" in said
        assert not (out / "raw").exists() and not (out / "manifest.json").exists()
    marked = {**ENV, "LUNA_TEST": str(out)}
    for step in "raw", "tokens", "bpe.codes", "pieces", "data-bin":
        kill_within(out / step, *command, env=marked)
        assert not (out / "manifest.json").exists() and not (out / step).exists()
        if sys.platform == "linux":
            wait_until(lambda: processes_with(f"LUNA_TEST={out}", "environ") == [])
    assert set(json.loads((out / "steps.json").read_text())) >= {"text", "vocabulary", "pieces"}
    call(*command)
    ours, theirs = contents(out), contents(finished("moses-bpe"))
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert not list(out.rglob("*.part"))


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_damaged_output_is_made_again(finished, server, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished("sentencepiece"), out)
    with open(out / "data-bin" / "train.en-de.en.bin", "r+b") as file:
        file.truncate(1000)
    before = times(out)
    said = call(*wmt14(server, out, "--workers", "1"))
    assert "binarising" in said and "cutting" not in said
    assert contents(out) == contents(finished("sentencepiece"))
    assert times(out)["pieces"] == before["pieces"]


DAMAGED = {
    "altered": ("training-parallel-commoncrawl.tgz", "altered"),
    "truncated": ("test-full.tgz", "truncated"),
}


@pytest.mark.stock
@pytest.mark.parametrize("ranges", each({"ranges": True, "no-ranges": False}, ["ranges"]))
def test_broken_download_goes_on(own_server, tmp_path, ranges):
    """What came before the connection broke is used where the server can send the rest, and else fetched again."""
    own_server.most, own_server.ranges = 300, ranges
    name, second = "training-parallel-europarl-v7.tgz", "training-parallel-commoncrawl.tgz"
    size = (own_server.folder / name).stat().st_size
    said = call(*wmt14(own_server, tmp_path / "out"), code=1)
    assert f"the connection ended at 300 of {size:,} bytes of {own_server.url}/{name}" in said
    assert (tmp_path / "out" / "downloads" / f"{name}.part").stat().st_size == 300
    own_server.most, own_server.requests[:] = 0, []
    call(*wmt14(own_server, tmp_path / "out", "--vocab-size", "2"), code=1)  # which is too small, after the downloads
    assert own_server.requests[:3] == [("SHA256SUMS", None), (name, "bytes=300-"), (second, None)]
    assert not list((tmp_path / "out" / "downloads").glob("*.part"))
    for path in own_server.folder.glob("*.tgz"):
        assert (tmp_path / "out" / "downloads" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.stock
@pytest.mark.parametrize("name, damage", each(DAMAGED, ["altered"]))
def test_wrong_archive_is_named_removed_and_not_used(own_server, tmp_path, name, damage):
    path, out = own_server.folder / name, tmp_path / "out"
    good = path.read_bytes()
    bad = good[:-9] if damage == "truncated" else good[:300] + bytes([good[300] ^ 1]) + good[301:]
    path.write_bytes(bad)
    said = call(*wmt14(own_server, out), code=1)
    assert f"{out / 'downloads' / name}.part is removed and not used" in said and f"{own_server.url}/{name}" in said
    assert not list((out / "downloads").glob(f"{name}*")) and not (out / "raw").exists()
    # the same on this side, once it was right: it is fetched again
    path.write_bytes(good)
    (out / "downloads" / name).write_bytes(bad)
    said = call(*wmt14(own_server, out, "--vocab-size", "2"), code=1)
    assert f"{out / 'downloads' / name} is removed and not used" in said
    assert (out / "downloads" / name).read_bytes() == good


def test_archives_that_cannot_be_used(own_server, tmp_path):
    name = "training-parallel-nc-v9.tgz"
    prefix = mirror.TRAINING[name]
    mirror.pack(own_server.folder / name, {f"{prefix}.en": "1\n2\n3\n", f"{prefix}.de": "1\n2\n3\n4\n5\n"})
    mirror.sign(own_server.folder)
    said = call(*wmt14(own_server, tmp_path / "out"), code=1)
    assert f"{prefix}.en of " in said and "has 3 lines" in said and "has 5" in said
    assert not (tmp_path / "out" / "raw").exists()
    mirror.pack(own_server.folder / name, {f"{prefix}.en": "1\n2\n3\n"})
    mirror.sign(own_server.folder)
    (tmp_path / "out" / "downloads" / name).unlink()
    assert f"holds no {prefix}.de" in call(*wmt14(own_server, tmp_path / "out"), code=1)
    (own_server.folder / "SHA256SUMS").write_text("<html>\nsign in first\n")
    shutil.rmtree(tmp_path / "out" / "downloads")
    assert "SHA256SUMS has no line for training-parallel-europarl-v7.tgz" in call(
        *wmt14(own_server, tmp_path / "out"), code=1
    )


def test_limit_takes_the_first_pairs_of_each_archive(own_server, tmp_path):
    said = call(*wmt14(own_server, tmp_path / "out", "--limit", "2", "--vocab-size", "2"), code=1)
    assert "makes no vocabulary of 2 pieces" in said
    expected = [line for i in (0, 3, 6) for line in mirror.lines("train.de", 9)[i : i + 2]]
    assert read(tmp_path / "out" / "raw" / "train.de") == expected
    assert len(read(tmp_path / "out" / "raw" / "test.de")) == 5


def test_official_archives_are_told_from_others(own_server, tmp_path):
    """By the sums that the product holds; here those of a mirror's files stand for them."""
    path = own_server.folder / "test.tgz"
    sum_of = hashlib.md5(path.read_bytes()).hexdigest()
    theirs = Archive(f"{own_server.url}/./test.tgz", sum_of)
    (tmp_path / "downloads").mkdir()
    downloads = Downloads(tmp_path / "downloads", None)
    assert downloads.get(theirs).read_bytes() == path.read_bytes()
    assert downloads.source(theirs)["official"] is True
    assert downloads.source(Archive(theirs.url, "0" * 32))["official"] is False

    # a mirror that has another leaves it alone
    path.write_bytes(b"something else")
    mirror.sign(own_server.folder)
    with pytest.raises(Exception, match="is the official archive, and the mirror has another"):
        Downloads(tmp_path / "downloads", own_server.url).get(theirs)
    assert hashlib.md5((tmp_path / "downloads" / "test.tgz").read_bytes()).hexdigest() == sum_of

    (tmp_path / "text").write_text("one\ntwo\n")
    text = Text(tmp_path / "text")
    check_lines((text, text), 2)
    with pytest.raises(Exception, match="has 2 lines, but the official set has 3,000"):
        check_lines((text, text), 3000)


def test_no_network(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        args = ["luna_data.parallel.prepare_wmt14", "--out", tmp_path / "out"]
        assert f"{url}/SHA256SUMS cannot be downloaded" in call(*args, "--mirror", url, code=1)
        proxies = {**ENV, "https_proxy": url, "HTTPS_PROXY": url, "no_proxy": "", "NO_PROXY": ""}
        said = call(*args, code=1, env=proxies)
        assert "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz cannot be downloaded" in said
        assert "check the network" in said


def test_help_needs_no_environment():
    script = ROOT / "data-prep" / "prepare-wmt14-en-de.sh"
    shown = subprocess.run(["bash", str(script), "--help"], stdout=subprocess.PIPE, check=True, timeout=HANGS).stdout
    assert b"usage: prepare-wmt14-en-de.sh" in shown and b"--mirror" in shown


# ---- recipes ---------------------------------------------------------------------------------------------------------

AWKWARD = [
    "",
    "\u2028",
    "a\u2028b\u0085c",
    "x\u00a0y\u3000z",
    "1\t2 ",
    "ß€😀 \u00ad\u200b",
    "q@@ r@@",
    "a | b & <s> </s>",
]


@pytest.mark.stock
@pytest.mark.parametrize("recipe", LEARNT)
def test_pieces_hold_no_white_space(finished, recipe):
    used = recipes.load(finished(recipe))
    pieces = used.encode(AWKWARD)
    assert len(pieces) == len(AWKWARD)
    assert all(piece and piece.split() == [piece] for line in pieces for piece in line)
    back = used.decode(pieces)
    assert not any(len(line.splitlines()) > 1 for line in back)
    if recipe == "sentencepiece":
        assert back == [" ".join(line.splitlines()) for line in AWKWARD]
    else:
        assert back[4:] == ["1 2", "ß €😀", "q @ @ r @ @", "a | b & < s > < / s >"]


def test_moses_text_comes_back(finished):
    """Dashes, escapes, quotes and pieces that go on are undone, by the rules of the target language."""
    used = recipes.load(finished("moses-bpe"))
    text = 'Die "LibreOffice-Hilfe" (z. B. A & B) ist unverzichtbar: 3.14 < 5, oder?'
    pieces = used.encode([text], "de")
    assert "&quot;" in "".join(pieces[0]).replace("@@", "") and any(piece.endswith("@@") for piece in pieces[0])
    assert used.decode(pieces) == [text]


@pytest.mark.parametrize("lang", ["en", "de"])
def test_fast_tokeniser_is_that_of_sacremoses(lang):
    from sacremoses import MosesTokenizer

    plain, fast = MosesTokenizer(lang=lang), recipes.fast_tokeniser(lang)
    lines = mirror.lines(f"test.{lang}", 500) + ["Mr. x said no. and", "Nr. 5 usw.", "z.B. a. B. c.", "3. Mai. Und"]
    assert [fast.tokenize(line) for line in lines] == [plain.tokenize(line) for line in lines]


def test_older_data_is_sentencepiece(finished, tmp_path):
    shutil.copy(finished("sentencepiece") / "spm.model", tmp_path)
    with pytest.raises(recipes.Problem, match="holds no prepared data"):
        recipes.load(tmp_path)
    (tmp_path / "manifest.json").write_text('{"settings": {"source": "en", "target": "de", "vocab_size": 1500}}')
    assert recipes.load(tmp_path).decode([["▁Click", "▁O", "K"]]) == ["Click OK"]
    (tmp_path / "spm.model").unlink()
    with pytest.raises(recipes.Problem, match="spm.model is missing"):
        recipes.load(tmp_path)


def test_tar_is_read_as_a_stream(tmp_path):
    """Members with ./ before their names, as some archives have them, are found."""
    mirror.pack(tmp_path / "a.tgz", {"./other": "x\n", "./dir/text.en": "1\n\n3"})
    assert list(Text(tmp_path / "a.tgz", "dir/text.en").lines()) == [b"1\n", b"\n", b"3"]
    with tarfile.open(str(tmp_path / "a.tgz")) as archive:
        assert archive.getnames() == ["./other", "./dir/text.en"]
