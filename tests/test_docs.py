"""The commands of the guides, parsed by the real parsers: none names an option or a file that is not there."""

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Iterator, List, NamedTuple

import pytest
from commands import ROOT, USER_DIR

import fairseq_luna  # noqa: F401  with the plugin's architectures

from fairseq import options  # isort: skip

GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPT = r"(?:bash|python|\.venv/bin/python) (?:scripts|data-prep)/[\w-]+\.(?:sh|py)\b"
FAIRSEQ = {
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
}
NUMBERS = {"N": "7", "P": "bf16"}  # what a placeholder stands for where text will not do


class Command(NamedTuple):
    guide: str
    text: str


def blocks(text: str) -> Iterator[str]:
    """The lines of blocks of code, fenced or indented, those that go on in one."""
    fenced = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    indented = re.findall(r"(?:^ {4}\S.*\n(?: {4}.*\n)*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    for block in [*fenced, *indented]:
        yield from (line.strip() for line in block.replace("\\\n", " ").split("\n"))


def commands() -> List[Command]:
    """Those of blocks of code, and those of our scripts within a sentence, but for what dots or --help cut short."""
    found = []
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose))
        found += [(guide.name, rf"(?:{SCRIPT}|(?:{'|'.join(FAIRSEQ)}) ).*", line) for line in blocks(text)]
        spans = [
            re.sub(r"^(train|decode|length|operator) --", r"python scripts/benchmark.py \g<0>", span) for span in spans
        ]
        found += [(guide.name, rf"{SCRIPT} .+", span) for span in spans]
    pieces = [
        (guide, re.search(pattern, text)) for guide, pattern, text in found if not re.search(r"\.{3}|--help", text)
    ]
    return list(dict.fromkeys(Command(guide, piece.group()) for guide, piece in pieces if piece))


def words(command: str) -> List[str]:
    """A command as the shell hands it on, without comments, redirections and what is piped to another."""
    command = command.replace("$(python -m fairseq_luna)", str(USER_DIR)).replace("$PWD", str(ROOT))
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|<>;")
    lexer.whitespace_split = True
    found = []
    for word in lexer:
        if set(word) <= set("|<>;"):
            break
        found.append(NUMBERS.get(word, word))
    return found


def parse(argv: List[str]) -> None:
    """As the script itself would: it ends the process where an option is not its own."""
    if argv[0] in FAIRSEQ:
        options.parse_args_and_arch(FAIRSEQ[argv[0]](), argv[1:])
        return
    script = ROOT / argv[1]
    assert script.is_file(), f"there is no {argv[1]}"
    if script.name in ("test.sh", "setup.sh"):
        known = set(re.findall(r"--[a-z-]+", script.read_text(encoding="utf-8")))
        assert {word for word in argv[2:] if word.startswith("--")} <= known
        return
    modules = {"average": "average_checkpoints", "prepare_wmt14_en_de": "prepare_wmt14"}
    name = script.stem.replace("-", "_")
    module = importlib.import_module(modules.get(name, name))
    sys.argv[:] = [script.name, *argv[2:]]
    module.parse_args()


@pytest.fixture
def somewhere(monkeypatch, tmp_path):
    """A folder in which all that a command names is a folder: the parsers ask for some."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["a script"])
    for folder in "scripts", "data-prep":
        monkeypatch.syspath_prepend(str(ROOT / folder))

    def named(argv: List[str]) -> List[str]:
        for word in argv:
            if not word.startswith(("-", "/")) and re.fullmatch(r"[\w./-]+", word):
                Path(word).mkdir(parents=True, exist_ok=True)
        return argv

    return named


@pytest.mark.stock
@pytest.mark.parametrize("command", commands(), ids=lambda command: f"{command.guide}: {command.text[:70]}")
def test_a_command_of_the_guides_is_one(somewhere, command):
    parse(somewhere(words(command.text)))


def test_all_of_them_are_looked_at():
    """Of each guide that has some, and a wrong one is found."""
    found = commands()
    assert len(found) > 40 and {"README.md", "wmt14.md", "quality.md", "speed.md"} <= {each.guide for each in found}
    others = [each.text for each in found if each.text.startswith("bash scripts/quickstart.sh --arch")]
    assert others and all(" --out " in text for text in others)  # runs/quickstart is of the one that it trains


@pytest.mark.parametrize("wrong", ["bash scripts/train.sh paper --date X", "fairseq-train X --arch luna_transformr"])
def test_a_wrong_command_is_found(somewhere, capsys, wrong):
    with pytest.raises(SystemExit):
        parse(somewhere(words(wrong)))


def test_the_tests_that_test_sh_names_are_there():
    for name in re.findall(r"tests/\w+\.py", (ROOT / "scripts" / "test.sh").read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name
