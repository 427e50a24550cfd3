"""The rooms of the plugin, and that imports go one way: ops -> modules -> models -> generation -> onnx -> export,
data -> models, tasks.

The package never imports scripts."""

import ast
import sys

import pytest
from commands import ROOT, run

PACKAGE = ROOT / "fairseq_luna"
# what files of a room may import of the package, beside the room itself
ALLOWED = {
    "ops": set(),
    "modules": {"ops"},
    "data": set(),
    "models": {"ops", "modules", "data"},
    "optim": set(),
    "tasks": {"data"},
    "text": {"errors", "files"},
    "generation": {"errors", "files", "versions", "compat", "models", "text"},
    "onnx": {"errors", "files", "generation", "text"},
    "export": {"errors", "files", "versions", "generation", "models", "modules", "ops", "onnx"},
}
SCRIPTS = {path.stem for folder in ("scripts", "data-prep") for path in (ROOT / folder).glob("*.py")}


def imported(path):
    """The full names of what a file imports, wherever in it."""
    package = ("fairseq_luna", *path.relative_to(PACKAGE).parts[:-1])
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
        found = {name.split(".")[0] for name in imported(path)} & (SCRIPTS | {"scripts", "tests"})
        assert not found, f"{path.relative_to(ROOT)} imports {found}"


def test_what_the_scripts_borrow_brings_no_plugin():
    """They import in a Python that has nothing installed, and are what the plugin itself has."""
    code = "import sys, common; assert not {'torch', 'fairseq', 'fairseq_luna'} & set(sys.modules)"
    borrowed = "from fairseq_luna.text import recipes; from fairseq_luna.generation.packing import pack"
    run([sys.executable, "-S", "-c", f"{code}; {borrowed}"], cwd=str(ROOT / "scripts"))
    code = "from common import Problem; import fairseq_luna; from fairseq_luna import errors, Translator"
    run([sys.executable, "-c", f"{code}; assert errors.Problem is Problem"], cwd=str(ROOT / "scripts"))


def test_operators_need_torch_alone():
    for path in sorted((PACKAGE / "ops").rglob("*.py")):
        found = [
            name for name in imported(path) if name.split(".")[0] in ("fairseq", "fairseq_cli", "hydra", "omegaconf")
        ]
        assert not found, f"{path.relative_to(ROOT)} imports {found}"
