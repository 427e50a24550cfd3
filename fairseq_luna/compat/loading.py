"""Reading checkpoints that may come from anybody."""

import argparse
import collections
import inspect
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Tuple

from .checkpoints import refused


class _Other:
    """A class that is part of no checkpoint."""


def check_checkpoint(path: Path) -> None:
    """torch < 2.6 runs whatever a checkpoint names, and fairseq loads it so; all versions take a TorchScript archive.

    Known by `torch.load` taking a class of ours. This reads the file in such a way that only what fairseq writes is
    taken: tensors, plain containers and `argparse.Namespace`. What it raises for others, later versions of torch raise
    when they load it.

    Raises:
        pickle.UnpicklingError: if the file is no checkpoint, or holds anything else.
    """
    import torch

    if not zipfile.is_zipfile(str(path)):
        raise pickle.UnpicklingError("it is not a whole checkpoint")
    with zipfile.ZipFile(str(path)) as archive:
        if any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist()):
            raise pickle.UnpicklingError("it is a program of TorchScript")
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            raise pickle.UnpicklingError("it is compressed, as torch writes none: it may be of any size")
    if not refused(_Other()):
        options: Dict[str, Any] = {"weights_only": False} if "weights_only" in parameters(torch.load) else {}
        torch.load(str(path), map_location="cpu", pickle_module=restricted_pickle(), **options)


def parameters(function: Any) -> Any:
    return inspect.signature(function).parameters


def restricted_pickle() -> Any:
    """A `pickle` for `torch.load` that knows only what fairseq writes."""
    import torch

    allowed: Dict[Tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("argparse", "Namespace"): argparse.Namespace,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module == "torch" and name.endswith("Storage") and name.isalnum():
                return super().find_class(module, name)  # a kind of storage
            if (module, name) not in allowed:
                raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not part of a checkpoint of fairseq")
            return allowed[module, name]

    def load(*args: Any, **kwargs: Any) -> Any:
        raise pickle.UnpicklingError("it is a checkpoint of a torch before 1.6")

    return SimpleNamespace(Unpickler=Unpickler, load=load, __name__="pickle")
