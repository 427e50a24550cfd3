"""What is installed: the check for a usable fairseq, and which versions were tested together.

Imports the standard library alone, so that it can tell what is missing where anything is.
"""

import platform
import sys
from importlib import metadata
from typing import Dict, List

__version__ = "0.1.0"

# The two combinations that the test suite runs on; constraints.txt pins the same versions.
TESTED = (
    {
        "python": "3.11",
        "torch": "2.13.0",
        "fairseq": "ve-fairseq 0.12.3",
        "hydra-core": "1.3.8",
        "omegaconf": "2.3.1",
        "numpy": "2.4.6",
        "sacrebleu": "2.6.0",
        "sentencepiece": "0.2.3",
    },
    {
        "python": "3.8",
        "torch": "1.12.1",
        "fairseq": "fairseq 0.12.2",
        "hydra-core": "1.0.7",
        "omegaconf": "2.0.6",
        "numpy": "1.24.4",
        "sacrebleu": "2.5.1",
        "sentencepiece": "0.2.0",
    },
)

# Pythons that the marked tests and the quick start were tried on, with the versions of the nearest combination
TRIED = ("3.9", "3.10", "3.12")

MISSING = "not installed"
COMMANDS = "fairseq_luna", "fairseq_luna.onnx"  # what `python -m` may be asked to run


def versions() -> Dict[str, str]:
    """The versions found, under the keys of `TESTED`."""
    found = {name: _version(name) for name in TESTED[0]}
    found["python"] = platform.python_version()
    found["fairseq"] = " and ".join(_fairseq_distributions()) or MISSING
    return found


def differences() -> Dict[str, str]:
    """What the nearest tested combination has where this one differs; empty where this one is tested."""
    found = versions()
    found["python"] = found["python"].rpartition(".")[0]
    found["torch"] = found["torch"].partition("+")[0]  # the CPU and CUDA builds of a release are one version
    apart = [{name: want for name, want in tested.items() if want != found[name]} for tested in TESTED]
    return min(apart, key=len)


def verdict() -> str:
    """Whether the versions found were tested together, in a sentence."""
    apart = differences()
    if not apart:
        return "This combination is tested."
    if list(apart) == ["python"] and "{}.{}".format(*sys.version_info) in TRIED:
        return f"This combination is tested in part, less than with Python {apart['python']}."
    return f"This combination is not tested; the nearest one that is has {listed(apart)}."


def listed(found: Dict[str, str]) -> str:
    """Versions in a line; that of fairseq names its distribution itself."""
    named = {name: name == "fairseq" and version != MISSING for name, version in found.items()}
    return ", ".join(version if named[name] else f"{name} {version}" for name, version in found.items())


def require_fairseq() -> None:
    """Import fairseq.

    Raises:
        ImportError: where that fails, in one sentence that says what to install.
    """
    try:
        import fairseq
    except Exception as error:
        raise ImportError(_complaint(error)) from None
    if not hasattr(fairseq, "__version__"):  # a folder without __init__.py, such as the top of a clone of fairseq
        raise ImportError(
            f"{list(fairseq.__path__)[0]!r} is a folder that Python takes for fairseq: run from another folder, "
            f"and where fairseq is not installed, {_remedy()}."
        )
    if tuple(int(part) for part in fairseq.__version__.split(".")[:2]) < (0, 12):
        raise ImportError(f"fairseq_luna needs fairseq >= 0.12.2, but this is {fairseq.__version__}: {_remedy()}.")


def run_as_command() -> bool:
    """Whether the package is being imported only to run one of `COMMANDS`, which must answer without fairseq."""
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
    # `python -m NAME` imports the package of that name from this function of the standard library's runpy
    return frame.f_code.co_name == "_run_module_as_main" and frame.f_locals.get("mod_name") in COMMANDS


def _complaint(error: Exception) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    if missing == "fairseq":
        return f"fairseq_luna needs fairseq, which is not installed: {_remedy()}."
    distributions = _fairseq_distributions()
    name = " and ".join(distributions) or "fairseq"
    if missing and not missing.startswith("fairseq."):
        return f"{name} needs the module {missing!r}, which is not installed: {_remedy()}."
    python = "{}.{}".format(*sys.version_info)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    remedy = _remedy(instead_of=" ".join(distribution.split()[0] for distribution in distributions))
    return f"{name} cannot be imported on Python {python} ({reason}): {remedy}."


def _remedy(instead_of: str = "") -> str:
    if sys.version_info >= (3, 13):
        return "use Python 3.8 to 3.12"
    remove = f"`pip uninstall --yes {instead_of}` and then " if instead_of else ""
    if sys.version_info >= (3, 11):
        return f'run {remove}`pip install "ve-fairseq==0.12.3"`'
    return f'run {remove}`pip install "pip<24.1"` and then `pip install "fairseq>=0.12.2,<0.13"`'


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return MISSING


def _fairseq_distributions() -> List[str]:
    """Name and version of each installed distribution that holds a package `fairseq`: it goes under several names."""
    holders = (d for d in metadata.distributions() if "fairseq" in (d.read_text("top_level.txt") or "").split())
    return sorted({f"{d.metadata['Name']} {d.version}" for d in holders})
