"""Installing: a missing or unusable fairseq, `python -m fairseq_luna`, the wheel, scripts/setup.sh."""

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from commands import interpreter
from packaging.requirements import Requirement

from fairseq_luna.versions import TESTED

ROOT = Path(__file__).resolve().parent.parent
INSTALL = 'pip install "ve-fairseq==0.12.3"' if sys.version_info >= (3, 11) else 'pip install "fairseq>=0.12.2,<0.13"'


def run(*command, cwd=ROOT, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([str(part) for part in command], cwd=str(cwd), env=env, capture_output=True, text=True)


def import_plugin(folder):
    """Import the plugin where only the standard library and `folder` can be imported besides."""
    return run(sys.executable, "-S", "-c", "import fairseq_luna", PYTHONPATH=f"{folder}{os.pathsep}{ROOT}")


def write_fairseq(folder, code, version="0.12.2"):
    (folder / "fairseq").mkdir()
    (folder / "fairseq" / "__init__.py").write_text(code)
    write_distribution(folder, "fairseq", version)


def write_distribution(folder, name, version):
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{name}\n")


# ---- a missing or unusable fairseq


def sentence(process):
    """What the user reads last, having seen no other error above it."""
    assert process.returncode == 1 and process.stdout == ""
    assert process.stderr.count("Traceback") == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ") and last.endswith(".") and INSTALL in last
    return last


@pytest.mark.stock
def test_no_fairseq(tmp_path):
    assert "needs fairseq, which is not installed: run" in sentence(import_plugin(tmp_path))


@pytest.mark.stock
def test_fairseq_without_a_module_that_it_needs(tmp_path):
    write_fairseq(tmp_path, "import hydra")
    assert "fairseq 0.12.2 needs the module 'hydra', which is not installed" in sentence(import_plugin(tmp_path))


@pytest.mark.stock
def test_fairseq_that_breaks(tmp_path):
    write_fairseq(tmp_path, "raise OSError('libc10.so:\\n  no such file')")
    said = sentence(import_plugin(tmp_path))
    assert "(OSError: libc10.so: no such file)" in said and "pip uninstall --yes fairseq`" in said


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.11 is the first to refuse stock fairseq's dataclasses")
def test_stock_fairseq_on_a_python_that_refuses_it(tmp_path):
    code = """
from dataclasses import dataclass

@dataclass
class Common:
    seed: int = 1

@dataclass
class Config:
    common: Common = Common()
"""
    write_fairseq(tmp_path, code)
    said = sentence(import_plugin(tmp_path))
    assert "fairseq 0.12.2 cannot be imported on Python 3.1" in said and "pip uninstall --yes fairseq`" in said


@pytest.mark.stock
def test_fairseq_that_is_too_old(tmp_path):
    write_fairseq(tmp_path, "__version__ = '0.10.2'", version="0.10.2")
    assert "needs fairseq >= 0.12.2, but this is 0.10.2" in sentence(import_plugin(tmp_path))


@pytest.mark.stock
def test_folder_that_only_bears_the_name(tmp_path):
    (tmp_path / "fairseq").mkdir()
    assert repr(str(tmp_path / "fairseq")) in sentence(import_plugin(tmp_path))


@pytest.mark.stock
def test_import_prints_nothing():
    process = run(sys.executable, "-c", "import fairseq_luna")
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


# ---- python -m fairseq_luna


@pytest.mark.stock
@pytest.mark.parametrize("options", [[], ["-S"]], ids=["installed", "without-fairseq"])
def test_command_prints_the_user_dir(tmp_path, options):
    process = run(sys.executable, *options, "-m", "fairseq_luna", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (process.returncode, process.stdout, process.stderr) == (0, f"{ROOT / 'fairseq_luna'}\n", "")


@pytest.mark.stock
def test_versions_without_fairseq(tmp_path):
    process = run(sys.executable, "-S", "-m", "fairseq_luna", "--versions", PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    assert "fairseq        not installed" in process.stdout and INSTALL in process.stdout.splitlines()[-1]


@pytest.mark.stock
def test_versions_of_the_tested_set():
    if not (Path(sys.prefix) / "setup.done").exists():
        pytest.skip("not an environment that scripts/setup.sh made")
    process = run(sys.executable, "-m", "fairseq_luna", "--versions")
    last = process.stdout.splitlines()[-1]
    if sys.version_info[:2] in [(3, 8), (3, 11)]:
        assert (process.returncode, last) == (0, "This combination is tested.")
    else:
        assert process.returncode == 0 and last.startswith("This combination is tested in part, ")


@pytest.mark.stock
def test_versions_of_another_set(tmp_path):
    write_distribution(tmp_path, "sacrebleu", "2.0.0")
    process = run(interpreter(), "-m", "fairseq_luna", "--versions", PYTHONPATH=str(tmp_path))
    assert "sacrebleu      2.0.0" in process.stdout and "This combination is not tested" in process.stdout
    wanted = {combination["sacrebleu"] for combination in TESTED}
    assert any(f"sacrebleu {version}" in process.stdout for version in wanted)


@pytest.mark.parametrize("combination", TESTED, ids=lambda combination: combination["python"])
def test_constraints_pin_the_tested_set(combination):
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pins = {}
    for requirement in map(Requirement, filter(None, lines)):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": combination["python"]}):
            assert requirement.name not in pins
            pins[requirement.name] = str(requirement.specifier)[2:]
    fairseq, version = combination["fairseq"].split()
    expected = {**combination, fairseq: version}
    expected.pop("python")
    if fairseq != "fairseq":
        expected.pop("fairseq")
        assert "fairseq" not in pins
    assert {name: pins.get(name) for name in expected} == expected


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that `pip wheel . --no-deps` makes of the checkout, and the files of the package."""
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"  # building leaves files beside setup.py
    ignore = shutil.ignore_patterns("__pycache__")
    for name in "fairseq_luna", "tests", "scripts", "data-prep", "configs":
        shutil.copytree(str(ROOT / name), str(source / name), ignore=ignore)
    for name in "setup.py", "pyproject.toml", "LICENSE", "README.md":
        shutil.copy(str(ROOT / name), str(source))
    package = {str(path.relative_to(source)) for path in (source / "fairseq_luna").rglob("*") if path.is_file()}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = run(*pip, "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", base, cwd=source)
    assert built.returncode == 0, built.stderr
    (made,) = base.glob("fairseq_luna-0.1.0-*.whl")
    return made, package


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """A folder with what the wheel installs, far from the checkout."""
    folder = tmp_path_factory.mktemp("a site")
    with zipfile.ZipFile(str(wheel[0])) as archive:
        archive.extractall(str(folder))
    return folder


@pytest.mark.stock
def test_wheel_holds_the_package_alone(wheel):
    made, package = wheel
    with zipfile.ZipFile(str(made)) as archive:
        held = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in held if name.endswith("METADATA"))
    assert {name for name in held if ".dist-info/" not in name} == package
    assert any(name.endswith("LICENSE") for name in held)

    required = {}
    for line in metadata.splitlines():
        if line.startswith("Requires-Dist: "):
            requirement = Requirement(line.partition(": ")[2])
            required[requirement.name] = requirement
    for python, extra, wanted in [
        ("3.8", "", "fairseq"),
        ("3.10", "", "fairseq"),
        ("3.11", "", None),  # the user's own fairseq stays
        ("3.11", "fairseq", "ve-fairseq"),
        ("3.12", "fairseq", "ve-fairseq"),
    ]:
        marked = {"python_version": python, "extra": extra}
        found = [name for name in ("fairseq", "ve-fairseq") if required[name].marker.evaluate(marked)]
        assert found == ([wanted] if wanted else [])


@pytest.mark.release
@pytest.mark.stock
def test_what_the_wheel_installs_works_without_the_checkout(site, tmp_path):
    process = run(sys.executable, "-S", "-m", "fairseq_luna", cwd=tmp_path, PYTHONPATH=str(site))
    user_dir = str(site / "fairseq_luna")
    assert process.stdout == f"{user_dir}\n"

    # as fairseq-train finds it: by its folder alone
    program = (
        "import sys\n"
        "from fairseq import options\n"
        "args = options.parse_args_and_arch(options.get_training_parser(), sys.argv[1:])\n"
        "import fairseq_luna\n"
        "print(args.arch, fairseq_luna.__file__)\n"
    )
    words = ["data", "--user-dir", user_dir, "--arch", "luna_transformer_tiny"]
    process = run(sys.executable, "-c", program, *words, cwd=tmp_path, PYTHONPATH="")
    assert process.stdout == f"luna_transformer_tiny {user_dir}/__init__.py\n", process.stderr

    # training with --user-dir, checkpoints and the Translator
    process = run(sys.executable, "-m", "fairseq_luna", "--check", cwd=tmp_path, PYTHONPATH=str(site))
    assert process.returncode == 0, process.stdout + process.stderr


# ---- the scripts


@pytest.mark.parametrize("script", ["scripts/setup.sh", "scripts/test.sh", ".ci/run"])
def test_help(script, tmp_path):
    process = run("bash", ROOT / script, "--help", cwd=tmp_path)
    assert process.returncode == 0 and process.stdout.startswith("usage: ") and process.stderr == ""


def refused(*arguments, **environment):
    """The one line that setup.sh ends with where it cannot begin."""
    process = run("bash", "scripts/setup.sh", *arguments, **environment)
    assert process.returncode == 1 and process.stdout == ""
    return process.stderr.splitlines()[-1]


def test_setup_refuses_an_unknown_argument():
    assert refused("--stok") == "setup: unknown argument '--stok'"


def test_setup_refuses_a_python_that_is_not_there():
    assert refused(PYTHON="python-none") == "setup: PYTHON=python-none cannot be used: there is no such program"


def test_setup_refuses_a_program_that_fails(tmp_path):
    shim = tmp_path / "python3.12"
    shim.write_text("#!/bin/sh\necho 'shim: python3.12: no such version' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert refused(PYTHON=str(shim)).endswith("cannot be used: shim: python3.12: no such version")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs a Python that stock fairseq cannot run on")
def test_setup_refuses_a_python_that_is_too_new():
    assert "which is not 3.8 to 3.10" in refused("--stock", STOCK_PYTHON=sys.executable)


def test_setup_leaves_a_folder_that_it_did_not_make(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "was not made by this script" in refused(VENV=str(tmp_path), PYTHON=sys.executable)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_setup_leaves_what_a_link_leads_to(tmp_path):
    """Such as the environment of another checkout."""
    other = tmp_path / "other"
    other.mkdir()
    for name in "setup.lock", "pyvenv.cfg":
        (other / name).write_text("")
    (tmp_path / ".venv").symlink_to(other)
    assert "is a link to" in refused(VENV=str(tmp_path / ".venv"), PYTHON=sys.executable)
    assert sorted(path.name for path in other.iterdir()) == ["pyvenv.cfg", "setup.lock"]


def test_setup_does_nothing_when_done():
    venv = ROOT / (os.environ.get("VENV") or ".venv")
    if not (venv / "setup.done").exists() or not venv.samefile(sys.prefix):
        pytest.skip("not run in the environment that scripts/setup.sh made")
    before = {path.name: path.stat().st_mtime_ns for path in venv.iterdir()}
    with (venv / "setup.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # were setup.sh to remake the environment, it would wait here, and say so
        command = ["bash", "scripts/setup.sh"]
        env = {**os.environ, "PYTHON": ""}
        setup = subprocess.Popen(command, cwd=str(ROOT), env=env, stderr=subprocess.PIPE, text=True)
        try:
            assert setup.stderr.readline() == "" and setup.wait() == 0
        finally:
            setup.kill()
    assert {path.name: path.stat().st_mtime_ns for path in venv.iterdir()} == before


def test_setup_waits_for_another_and_remakes_what_was_left_half_done(tmp_path):
    checkout = tmp_path / "a check out"
    for name in ("scripts/setup.sh", "setup.py", "constraints.txt", "fairseq_luna/versions.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(ROOT / name), str(checkout / name))
    venv = checkout / ".venv"
    (venv / "lib").mkdir(parents=True)
    half = venv / "lib" / "half-a-wheel"
    half.touch()

    no_index = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1", "PIP_CONFIG_FILE": os.devnull}
    no_index.update(PIP_EXTRA_INDEX_URL="", PIP_FIND_LINKS="", PYTHON=sys.executable, VENV="")
    with (venv / "setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = ["bash", str(checkout / "scripts" / "setup.sh")]
        setup = subprocess.Popen(command, env={**os.environ, **no_index}, stderr=subprocess.PIPE, text=True)
        assert setup.stderr.readline() == "setup: another setup is at work in .venv, waiting for it\n"
        assert half.exists()
    said = setup.communicate()[1]

    assert setup.returncode == 1 and not half.exists() and not (venv / "setup.done").exists()
    assert "setup: torch, fairseq and what they need take about " in said
    assert "setup: installing torch ... failed" in said and "Failed to establish a new connection" in said
    assert said.splitlines()[-1].startswith("setup: The package index cannot be reached: check the network")
