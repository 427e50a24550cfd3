"""data-prep/debian-text.sh on packages made here."""

import shutil
import subprocess
from pathlib import Path

import pytest
from commands import run, script

pytestmark = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb makes and unpacks the packages")

ENTRIES = """# Version :: devel
Aal {m} | Der Aal {m} ist blau. [cook.] :: eel | The eel is blue. <eels>
Das ist das {n} Ende! :: This is the end!
Er kommt/geht jetzt heim. :: He comes/goes home now.
Ja. | Das geht nicht so einfach. :: Yes. | That is not easy at all.
Zwei Seiten. | Drei | ungleich viele :: two sides | three
"""


def package(folder: Path, name: str, files: dict) -> Path:
    root = folder / f"{name}-root"
    for path, text in {
        "DEBIAN/control": f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y.z>\nDescription: x\n",
        **files,
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    subprocess.run(["dpkg-deb", "-b", str(root), str(folder / f"{name}.deb")], check=True, stdout=subprocess.DEVNULL)
    return folder / f"{name}.deb"


def text(*words, **options):
    return run(script("luna_data.debian.command", *words), **options)


def pairs(out: Path, lang: str = "de") -> dict:
    files = {split: [out / f"{split}.{name}" for name in ("en", lang)] for split in SPLITS}
    sides = {split: [path.read_text("utf-8").splitlines() for path in both] for split, both in files.items()}
    assert all(len(en) == len(other) for en, other in sides.values())
    return {split: list(zip(en, other)) for split, (en, other) in sides.items()}


SPLITS = "train", "valid", "test"


def test_sentences(tmp_path):
    many = "".join(f"Das ist der Satz {i}. :: This is sentence {i}.\n" for i in range(300))
    deb = package(tmp_path, "trans-de-en", {"usr/share/trans/de-en": ENTRIES + many})
    said = text("sentences", "--out", tmp_path / "a b", "--debs", deb).stdout
    assert f"--train '{tmp_path / 'a b' / 'train'}' --valid" in said
    found = pairs(tmp_path / "a b")
    assert all(5 < len(found[split]) < 40 for split in ("valid", "test"))
    everything = [pair for split in SPLITS for pair in found[split]]
    assert len(everything) == len(set(everything)) == 303
    assert {
        ("The eel is blue.", "Der Aal ist blau."),
        ("This is the end!", "Das ist das Ende!"),
        ("That is not easy at all.", "Das geht nicht so einfach."),
    } < set(everything)
    # the same again changes nothing, and other text is not mixed in
    before = (tmp_path / "a b" / "train.en").read_bytes()
    text("sentences", "--out", tmp_path / "a b", "--debs", deb)
    assert (tmp_path / "a b" / "train.en").read_bytes() == before
    done = text("documents", "--out", tmp_path / "a b", "--debs", deb, fails=True)
    assert "holds other text than asked for" in done.stderr


def page(lang: str, number: int, swap: bool = False) -> str:
    lines = [f'<h1 id="hd_id1">{lang} heading {number}</h1>'] + [
        f'<p id="par_id{i}" class="paragraph">{lang} <span>page</span> {number}\n  paragraph {i} has nine words.</p>'
        for i in range(2, 20)
    ]
    lines.append(f'<p id="bm_module">{lang} no paragraph</p><p id="par_only{lang}">{lang} alone</p>')
    lines.append(f'<p id="par_shared">{lang} shared words of all pages</p>')
    # parts of other pages: an id twice, in the same order on both sides; and once more on one side alone
    lines += [
        f'<p id="par_twice">{lang} {which}</p>' for which in (["second", "first"] if swap else ["first", "second"])
    ]
    lines += [f'<p id="par_uneven">{lang} uneven {i}</p>' for i in range(2 if swap else 1)]
    lines.append('<p id="par_code">Dim a As Integer</p>')
    return "<html><body>" + "".join(reversed(lines) if swap else lines) + "</body></html>"


@pytest.fixture(scope="module")
def help_packages(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("help")
    base = "usr/share/libreoffice/help"
    debs = []
    for code, name in ("en-US", "en-us"), ("de", "de"):
        files = {f"{base}/{code}/text/part/{i}.html": page(code, i, swap=code == "de") for i in range(120)}
        files[f"{base}/{code}/contents.js"] = ""
        debs.append(package(folder, f"libreoffice-help-{name}", files))
    return debs


def test_documents(tmp_path, help_packages):
    text("documents", "--words", 60, "--out", tmp_path / "out", "--debs", *help_packages)
    found = pairs(tmp_path / "out")
    assert all(found.values())
    for en, de in (pair for split in SPLITS for pair in found[split]):
        assert en.replace("en-US", "de") == de  # the paragraphs of the same ids, in the order of the English page
        assert not any(word in en for word in ("alone", "no paragraph", "uneven", "Dim"))
        assert len(en.split()) <= 60
    for split in "valid", "test":
        assert all(len(en.split()) > 30 for en, _ in found[split])
    assert len({len(en.split()) for en, _ in found["train"]}) > 3  # all sizes
    # nothing of a page that is held out is learnt, nor what it shares with others
    number = [{en.split("heading ")[1].split()[0] for en, _ in found[split] if "heading" in en} for split in SPLITS]
    assert not number[0] & (number[1] | number[2]) and not number[1] & number[2]
    assert not any("shared" in en for en, _ in found["train"])


def test_wrong_packages_are_told(tmp_path, help_packages):
    done = text("sentences", "--out", tmp_path / "out", "--debs", help_packages[0], fails=True)
    assert "no package holds .../trans/de-en" in done.stderr and not (tmp_path / "out").exists()
    done = text("documents", "--lang", "fr", "--out", tmp_path / "out", "--debs", *help_packages, fails=True)
    assert "no package holds .../help/fr/contents.js" in done.stderr
    broken = tmp_path / "broken.deb"
    broken.write_bytes(help_packages[0].read_bytes()[:2000])
    done = text("documents", "--out", tmp_path / "out", "--debs", broken, fails=True)
    assert "broken.deb is no package that dpkg-deb can unpack" in done.stderr and "Traceback" not in done.stderr
    assert "--lang is fr" in text("sentences", "--lang", "fr", "--out", "x", fails=True).stderr
    long = text("documents", "--words", 5000, "--out", tmp_path / "long", "--debs", *help_packages, fails=True).stderr
    assert "must be longer than half of --words" in long and not (tmp_path / "long").exists()
    assert "--words must be at least 1, but is 0" in text("documents", "--words", 0, "--out", "x", fails=True).stderr
