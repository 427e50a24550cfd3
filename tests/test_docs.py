"""The guides: commands parsed by the real parsers, links that lead somewhere, pages that are short."""

import argparse
import functools
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Callable, Iterator, List, NamedTuple, Set

import pytest
from commands import ROOT, USER_DIR
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

import fairseq_luna  # noqa: F401  with the plugin's architectures

from fairseq import options  # isort: skip
from fairseq.dataclass.initialize import hydra_init  # isort: skip

try:
    from hydra import compose, initialize_config_dir
except ImportError:  # hydra 1.0
    from hydra.experimental import compose, initialize_config_dir

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # hydra's, of deprecations

GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LONGEST = 1500  # words of a page that somebody is to read
SCRIPT = r"(?:bash|python|\.venv/bin/python) (?:scripts|data-prep)/[\w-]+\.(?:sh|py)\b"
FAIRSEQ = {
    "fairseq-train": options.get_training_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
    "fairseq-validate": options.get_validation_parser,
    "fairseq-eval-lm": options.get_eval_lm_parser,
    "fairseq-preprocess": options.get_preprocessing_parser,
}
HYDRA = r"fairseq-hydra-train |(?:\.venv/bin/)?python -c \"import fairseq_luna; from fairseq_cli.hydra_train "
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
        found += [(guide.name, rf"(?:{SCRIPT}|(?:{'|'.join(FAIRSEQ)}) |{HYDRA}).*", line) for line in blocks(text)]
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


def parser_of_models(parser: argparse.ArgumentParser) -> Callable[[List[str]], object]:
    """Where the options depend on the architecture, the task and so on."""
    return functools.partial(options.parse_args_and_arch, parser)


def compose_configuration(argv: List[str]) -> None:
    """As fairseq-hydra-train does, but for hydra's own settings: a launcher need not be installed here."""
    folder, name = (argv[argv.index(option) + 1] for option in ("--config-dir", "--config-name"))
    given = [word for word in argv[argv.index(name) + 1 :] if "=" in word and not word.startswith("hydra")]
    hydra_init(name)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=folder):
        compose(name, overrides=given)


def parse(argv: List[str]) -> None:
    """As the script itself would: it ends the process where an option is not its own."""
    if argv[0] in FAIRSEQ:
        parser = FAIRSEQ[argv[0]]()
        (parser.parse_args if argv[0] == "fairseq-preprocess" else parser_of_models(parser))(argv[1:])
        return
    if "--config-name" in argv:
        compose_configuration(argv)
        return
    script = ROOT / argv[1]
    assert script.is_file(), f"there is no {argv[1]}"
    if script.name in ("test.sh", "setup.sh"):
        known = set(re.findall(r"--[a-z-]+", script.read_text(encoding="utf-8")))
        assert {word for word in argv[2:] if word.startswith("--")} <= known
        return
    sys.argv[:] = [script.name, *argv[2:]]
    importlib.import_module(module_of(script)).parse_args()


def module_of(script: Path) -> str:
    """What a script runs: the module that it names, or itself."""
    text = script.read_text(encoding="utf-8")
    named = re.search(r"(?:-m |from )(\w[\w.]*?)(?: \"\$@\"| import main\n)", text)
    return named.group(1) if named else script.stem


@pytest.fixture
def somewhere(monkeypatch, tmp_path):
    """A folder in which all that a command names is a folder: the parsers ask for some."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["a script"])

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
    assert len(found) > 40 and {"README.md", "wmt14.md", "results.md", "speed.md"} <= {each.guide for each in found}
    others = [each.text for each in found if each.text.startswith("bash scripts/quickstart.sh --arch")]
    assert others and all(" --out " in text for text in others)  # runs/quickstart is of the one that it trains


WRONG = [
    "bash scripts/train.sh paper --date X",
    "fairseq-train X --arch luna_transformr",
    "fairseq-preprocess --only-sources",
    'fairseq-hydra-train --config-dir "$PWD/configs" --config-name quickstart model.projection_lenth=64',
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_command_is_found(somewhere, capsys, wrong):
    with pytest.raises((SystemExit, HydraException)):
        parse(somewhere(words(wrong)))


def test_the_tests_that_test_sh_names_are_there():
    for name in re.findall(r"tests/[\w/]+\.py", (ROOT / "scripts" / "test.sh").read_text(encoding="utf-8")):
        assert (ROOT / name).is_file(), name


# ---- pages


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`]*`", "", text, flags=re.M | re.S)


def anchors(page: Path) -> Set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"https?:", link):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name} links to {link}, which is not there"
        assert not heading or heading in anchors(target), f"{page.name} links to {link}: there is no such heading"


def test_guides_that_code_and_scripts_name_are_there():
    sources = [path for folder in ("fairseq_luna", "scripts", "data-prep", "configs") for path in files(ROOT / folder)]
    named = {(path, name) for path in sources for name in re.findall(r"docs/[\w./-]+\.md", path.read_text("utf-8"))}
    assert len(named) > 3
    for path, name in named:
        assert (ROOT / name).is_file(), f"{path.name} names {name}"


def files(folder: Path) -> List[Path]:
    return [path for path in folder.rglob("*") if path.suffix in (".py", ".sh", ".yaml")]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_short(page):
    """But for the list of all settings, which is looked up and not read."""
    count = len(page.read_text(encoding="utf-8").split())
    assert page.name == "settings.md" or count <= LONGEST, f"{page.name} has {count} words, of {LONGEST} at most"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    linked = {(ROOT / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)\)", index)}
    assert {page.resolve() for page in GUIDES} - {(ROOT / "docs" / "README.md").resolve()} <= linked


def test_every_picture_is_shown():
    shown = "".join(page.read_text(encoding="utf-8") for page in GUIDES)
    pictures = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".png", ".svg")]
    assert pictures and all(path.name in shown for path in pictures)
