"""The rooms of the plugin and of the scripts' packages, and that imports go one way.

In the plugin: ops -> modules -> models -> generation -> onnx -> export, data -> models, tasks. In scripts/luna_tools/:
data, training -> evaluation -> study, and what stands upon them. In data-prep/luna_data/: debian -> help ->
classification, parallel. The plugin imports nothing of the scripts, luna_tools nothing of luna_data."""

import ast
import subprocess
import sys

import pytest
from commands import ROOT, run

PACKAGE = ROOT / "fairseq_luna"
# what files of a room may import of the package, beside the room itself
ALLOWED = {
    "ops": set(),
    "modules": {"ops"},
    "data": set(),
    "models": {"renamed", "ops", "modules", "data"},
    "criterions": {"ops", "modules", "models"},
    "optim": set(),
    "tasks": {"data"},
    "check": {"versions", "ops", "models", "text", "generation"},
    "text": {"errors", "files"},
    "generation": {"errors", "files", "archives", "versions", "compat", "models", "text"},
    "onnx": {"errors", "archives", "files", "generation", "text"},
    "export": {"errors", "files", "versions", "generation", "models", "modules", "ops", "onnx"},
}
TOOLS = ROOT / "scripts" / "luna_tools"
# what files of a room of the scripts may import of the others, beside the modules that are in none
SCRIPTS_ALLOWED = {
    "data": set(),
    "training": set(),
    "benchmark": set(),
    "evaluation": {"data", "training"},
    "inspection": {"evaluation"},
    "language_model": {"data", "training"},
    "classification": {"data", "training"},
    "study": {"data", "training", "evaluation"},
    "quickstart": {"data", "training", "evaluation"},
}
AT_THE_TOP = {"replicate"}  # a command that is in no room, and may import of all
DATA = ROOT / "data-prep" / "luna_data"
# the modules of each room of the preparations, each after all that it imports; "" for those that are in none
DATA_ORDER = {
    "": "folder meter options workers downloads",
    "debian": "splits packages sentences documents command",
    "parallel": "options rules text versions corpus clean tokenise learn split preprocess binarise notes report steps "
    "prepare_corpus prepare_wmt14",
    "help": "pages index text",
    "classification": "data listops prepare_help_pages prepare_imdb prepare_listops",
}
DATA_ALLOWED = {"": {""}, "debian": {""}, "parallel": {""}, "help": {"", "debian"}, "classification": {"", "help"}}
OUTSIDE = {"scripts", "tests", "luna_tools", "luna_data"}


def imported(path, package=PACKAGE):
    """The full names of what a file imports, wherever in it."""
    package = (package.name, *path.relative_to(package).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*start, *(node.module or "").split("."))).strip(".")
            # `from . import name` may import a module
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room):
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("fairseq_luna.")}
        assert rooms - {room} <= ALLOWED[room], f"{path.relative_to(ROOT)} imports {rooms - {room}}"


def test_the_package_imports_no_scripts():
    for path in sorted(PACKAGE.rglob("*.py")):
        found = {name.split(".")[0] for name in imported(path)} & OUTSIDE
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def rooms_of_tools():
    return {path.parent.name for path in TOOLS.glob("*/__init__.py")}


@pytest.mark.parametrize("room", SCRIPTS_ALLOWED)
def test_imports_of_the_scripts_go_one_way(room):
    files = sorted((TOOLS / room).rglob("*.py"))
    assert files
    for path in files:
        found = {name.split(".")[1] for name in imported(path, TOOLS) if name.startswith("luna_tools.")}
        wrong = found & (rooms_of_tools() | AT_THE_TOP) - {room} - SCRIPTS_ALLOWED[room]
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_scripts_know_nothing_of_what_stands_upon_them():
    """Modules in no room import no room, and nothing here imports luna_data, which stands upon it."""
    assert rooms_of_tools() == set(SCRIPTS_ALLOWED)
    for path in sorted(TOOLS.rglob("*.py")):
        names = list(imported(path, TOOLS))
        assert not [name for name in names if name.startswith(("luna_data", "tests"))], path
        if path.parent == TOOLS and path.stem not in AT_THE_TOP:
            found = {name.split(".")[1] for name in names if name.startswith("luna_tools.")}
            assert not found & rooms_of_tools(), f"{path.relative_to(ROOT)} imports {found}"


def modules_of_data(room):
    return [".".join(filter(None, ("luna_data", room, name))) for name in DATA_ORDER[room].split()]


@pytest.mark.parametrize("room", DATA_ORDER)
def test_imports_of_the_preparations_go_one_way(room):
    modules = modules_of_data(room)
    files = {path.stem: path for path in (DATA / room).glob("*.py") if path.stem != "__init__"}
    assert sorted(files) == sorted(DATA_ORDER[room].split())
    known = {name for other in DATA_ALLOWED[room] - {room} for name in modules_of_data(other)}
    for module in modules:
        path = files[module.rpartition(".")[2]]
        for name in imported(path, DATA):
            # the name of a module, or of something in one
            assert not name.startswith("luna_data.") or {name, name.rpartition(".")[0]} & known, (
                f"{path} imports {name}"
            )
        known.add(module)


def test_what_the_scripts_borrow_brings_no_plugin():
    """All of them import in a Python that has nothing installed; what they borrow is what the plugin itself has."""
    files = [path.relative_to(each.parent).with_suffix("") for each in (TOOLS, DATA) for path in each.rglob("*.py")]
    modules = [".".join(path.parts) for path in files if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; assert not {{'torch', 'fairseq', 'fairseq_luna'}} & set(sys.modules)"
    borrowed = "from fairseq_luna.text import recipes; from fairseq_luna.generation.packing import pack"
    run([sys.executable, "-S", "-c", f"{code}; {borrowed}"])
    code = "import luna_tools; from fairseq_luna.errors import Problem; import fairseq_luna"
    code += "; from fairseq_luna import errors, Translator; assert errors.Problem is Problem"
    run([sys.executable, "-c", code])


def test_a_command_takes_nothing_from_the_folder_it_is_run_in(tmp_path):
    """Which may be a checkout of fairseq, or hold files with names of modules."""
    (tmp_path / "argparse.py").write_text("raise SystemExit('taken from the folder')")
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "train.sh"), "--help"], cwd=str(tmp_path), capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0 and done.stdout.startswith("usage: train.sh"), done.stderr


def test_operators_need_torch_alone():
    for path in sorted((PACKAGE / "ops").rglob("*.py")):
        found = [
            name for name in imported(path) if name.split(".")[0] in ("fairseq", "fairseq_cli", "hydra", "omegaconf")
        ]
        assert not found, f"{path.relative_to(ROOT)} imports {found}"
