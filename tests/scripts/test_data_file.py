"""Prepared data as one file, and test sets by their names."""

import hashlib
import io
import json
import lzma
import shutil
import tarfile
from pathlib import Path

import pytest
from commands import prepared
from luna_data.parallel import prepare_corpus
from luna_tools.data.packed import SUMS, contents, pack, unpacked
from luna_tools.data.testsets import split_of, test_sets

from fairseq_luna.errors import Problem
from fairseq_luna.files import sha256

test_sets.__test__ = False  # type: ignore[attr-defined]  it is no test


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """With two test sets: what every one has, and the validation set under another name."""
    folder = tmp_path_factory.mktemp("texts")
    return prepared(folder, "--test", f"other={folder / 'valid'}")


@pytest.fixture(scope="module")
def packed(data, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("packed") / "data.tar.xz"
    pack(data, file)
    return file


def test_round_trip(data, packed, tmp_path):
    folder = unpacked(packed, tmp_path)
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert there - {"unpacked.json"} == set(contents(data)) and folder == tmp_path / "data"
    assert {"data-bin/test1.en-de.en.bin", "raw/test1.de", "manifest.json", "spm.model"} < there
    assert not any(name.startswith("raw/train") for name in there)
    assert all(sha256(folder / name) == sha256(data / name) for name in contents(data))
    kept = (folder / "manifest.json").stat().st_mtime_ns
    assert unpacked(packed, tmp_path) == folder and (folder / "manifest.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_short(packed, tmp_path, share):
    short = tmp_path / "short.tar.xz"
    whole = packed.read_bytes()
    short.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(Problem, match="short.tar.xz is cut short, or is no file of --pack-data"):
        unpacked(short, tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()


def packed_by_hand(file: Path, sums: object, *members: tarfile.TarInfo) -> Path:
    with lzma.open(str(file), "wb") as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        text = json.dumps(sums).encode()
        first = tarfile.TarInfo(SUMS)
        first.size = len(text)
        archive.addfile(first, io.BytesIO(text))
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return file


def member(name: str, size: int = 1, **facts) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.size = size
    for key, value in facts.items():
        setattr(found, key, value)
    return found


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}
TOLD = {"sha256": "0", "bytes": 1}


@pytest.mark.parametrize(
    "sums, members, says",
    [
        ({"../out": TOLD}, [], "'../out', which --pack-data does not write"),
        ({"raw/../../out": TOLD}, [], "which --pack-data does not write"),
        ({"raw/..": TOLD}, [], "which --pack-data does not write"),
        ({"/etc/passwd": TOLD}, [], "which --pack-data does not write"),
        ({"raw/a": TOLD}, [member("/raw/a")], "'/raw/a', which --pack-data does not write"),
        ({"raw/a": TOLD}, [member("raw/a", **LINK)], "'raw/a', which --pack-data does not write"),
        ({"raw/a": TOLD}, [member("raw/a", 2)], "'raw/a', which --pack-data does not write"),
        ({"raw/a": TOLD}, [member("raw/a")], "raw/a in .* is not as it was packed"),
        ({"raw/a": TOLD}, [], "lacks raw/a"),
        ({"raw/a": {**TOLD, "bytes": 1 << 60}}, [], "bytes unpacked, but .* has only"),
        ({"raw/a": ""}, [], "'raw/a', which --pack-data does not write"),
        (["raw/a"], [], "is no file of --pack-data: it does not begin with sums.json"),
    ],
)
def test_a_hostile_file(tmp_path, sums, members, says):
    file = packed_by_hand(tmp_path / "data.tar.xz", sums, *members)
    with pytest.raises(Problem, match=says):
        unpacked(file, tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists() and not (tmp_path / "out" / "out").exists()


def test_a_header_without_measure(tmp_path):
    """A few bytes that claim to be a name of a gigabyte: memory is asked for none of it."""
    file = tmp_path / "data.tar.xz"
    with lzma.open(str(file), "wb") as packed:
        packed.write(member("long", 1 << 30, type=tarfile.GNUTYPE_LONGNAME).tobuf(tarfile.GNU_FORMAT))
        packed.write(bytes(1 << 20))
    with pytest.raises(Problem, match="bytes at once"):
        unpacked(file, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test sets": {"../../out": "test"}}, "names a test set '../../out'"),
        ({"test sets": {"news": "../test"}}, "names a test set 'news' \\('../test'\\)"),
        ({"target": "../de"}, "names a language '../de'"),
    ],
)
def test_names_that_lead_elsewhere(data, tmp_path, changes, says):
    """In a manifest, after which files of a study are named."""
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    file = tmp_path / "data.tar.xz"
    pack(copy, file)
    manifest["settings"].update(changes)
    text = json.dumps(manifest).encode()
    told = {"sha256": hashlib.sha256(text).hexdigest(), "bytes": len(text)}
    with lzma.open(str(file), "wb") as packed, tarfile.open(fileobj=packed, mode="w|") as archive:
        sums = {"manifest.json": told, "spm.model": {"sha256": sha256(copy / "spm.model"), "bytes": size(copy)}}
        for name, content in (SUMS, json.dumps(sums).encode()), ("manifest.json", text):
            archive.addfile(member(name, len(content)), io.BytesIO(content))
        archive.add(str(copy / "spm.model"), "spm.model")
    with pytest.raises(Problem, match=says):
        unpacked(file, tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()


def size(folder):
    return (folder / "spm.model").stat().st_size


@pytest.mark.parametrize("begun", [False, True])
def test_other_data_are_left_alone(packed, tmp_path, begun):
    """Whether or not a study has been there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("", encoding="utf-8")
    if begun:
        (tmp_path / "settings.json").write_text("{}", encoding="utf-8")
    with pytest.raises(Problem, match="data is there, and was not unpacked from"):
        unpacked(packed, tmp_path)
    assert (tmp_path / "data" / "mine").exists()


def test_names_of_test_sets(data, tmp_path):
    assert test_sets(data) == {"test": "test", "other": "test1"} and test_sets(tmp_path) == {"test": "test"}
    assert [split_of(data, name) for name in ("valid", "other", "test1", "test")] == ["valid", "test1", "test1", "test"]
    with pytest.raises(Problem, match="has no subset others; possible are train, valid, test, other"):
        split_of(data, "others")
    manifest = json.loads((data / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["lines"]["test1.en"] == manifest["lines"]["valid.en"] == 12


def test_what_test_sets_are_called(tmp_path):
    assert prepare_corpus.named(["a/test"], "en") == {"test": "a/test"}
    assert prepare_corpus.named(["news=a=b/c", "web-2=d"], "en") == {"news": "a=b/c", "web-2": "d"}
    (tmp_path / "a=b.en").write_text("", encoding="utf-8")
    assert prepare_corpus.named([f"{tmp_path}/a=b"], "en") == {"test": f"{tmp_path}/a=b"}
    for words, says in [
        (["a=b", "a=c"], "two test sets have the name a"),
        (["b", "c"], "two test sets have the name test"),
        (["a=b", "c"], "must be the first"),
        (["test1=b"], "test1 cannot name a test set"),
        (["valid=b"], "valid cannot name a test set"),
        (["a b=c"], "a b cannot name a test set"),
    ]:
        with pytest.raises(Problem, match=says):
            prepare_corpus.named(words, "en")
