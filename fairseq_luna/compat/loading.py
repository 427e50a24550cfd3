"""Reading checkpoints that may come from anybody."""

import argparse
import collections
import inspect
import pickle
import re
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Tuple

from .checkpoints import refused


class _Other:
    """A class that is part of no checkpoint."""


class Refused(pickle.UnpicklingError):
    """A reason to load a checkpoint no further, in words that follow its name."""


class _Fixed(type):
    """A class that a pickle cannot give attributes, which all its instances would then have unseen."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise Refused("it changes a class")


class _Settings(argparse.Namespace, metaclass=_Fixed):
    """A Namespace of a checkpoint."""


def check_checkpoint(path: Path) -> Any:
    """torch < 2.6 runs whatever a checkpoint names, and fairseq loads it so; all versions take a TorchScript archive.

    Known by `torch.load` taking a class of ours. This reads the file in such a way that only what fairseq writes is
    taken: tensors, plain containers and `argparse.Namespace`. Later versions of torch do so themselves.

    Returns:
        What the checkpoint holds.

    Raises:
        pickle.UnpicklingError: if the file is no checkpoint, is damaged, or holds anything else.
    """
    try:
        return read_safely(path)
    except Refused:
        raise
    except Exception as error:  # what torch raises for a damaged file may be of any type
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise Refused(f"it holds {named[1]}, which is not part of a checkpoint of fairseq") from error
        # torch puts its reason behind advice to load the file in a way that runs code
        told = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        raise Refused(f"it is damaged ({type(error).__name__}: {told})") from error


def read_safely(path: Path) -> Any:
    import torch

    if not zipfile.is_zipfile(str(path)):
        raise Refused("it is not a whole checkpoint")
    with zipfile.ZipFile(str(path)) as archive:
        if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
            raise Refused("it is a program of TorchScript")
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise Refused("it is compressed, as torch writes none: it may be of any size")
    options: Dict[str, Any] = {}
    if not refused(_Other()):
        options["pickle_module"] = restricted_pickle()
        if "weights_only" in parameters(torch.load):
            options["weights_only"] = False
    return torch.load(str(path), map_location="cpu", **options)


def parameters(function: Any) -> Any:
    return inspect.signature(function).parameters


def restricted_pickle() -> Any:
    """A `pickle` for `torch.load` that knows only what fairseq writes."""
    import torch

    allowed: Dict[Tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("argparse", "Namespace"): _Settings,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch" and name.endswith("Storage") and name.isalnum():
                return super().find_class(module, name)  # a kind of storage
            if (module, name) not in allowed:
                raise Refused(f"it holds {module}.{name}, which is not part of a checkpoint of fairseq")
            return allowed[module, name]

    def load(*args: Any, **kwargs: Any) -> Any:
        raise Refused("it is a checkpoint of a torch before 1.6")

    return SimpleNamespace(Unpickler=Unpickler, load=load, __name__="pickle")
