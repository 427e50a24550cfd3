"""One process of a training, started by train.sh: fairseq-hydra-train with the plugin, in its place among them."""

import os
import re
import resource
import sys
from pathlib import Path

from luna_tools.processes import die_with_parent


def main() -> None:
    die_with_parent()
    rank = int(os.environ.get("RANK", 0))
    if "WORLD_SIZE" in os.environ:
        # Said in full: left to itself, fairseq divides by the number of GPUs, of which there may be none.
        on_cpu = "common.cpu=true" in sys.argv
        sys.argv += [
            f"distributed_training.distributed_world_size={os.environ['WORLD_SIZE']}",
            f"distributed_training.distributed_rank={rank}",
            f"distributed_training.device_id={0 if on_cpu else os.environ['LOCAL_RANK']}",
            "distributed_training.distributed_init_method='env://'",
            "distributed_training.distributed_no_spawn=true",
        ]
    sys.argv.append(f"hydra.output_subdir={'config' if rank == 0 else 'null'}")

    import fairseq_luna  # noqa: F401, I001  before hydra, whose page of warnings it silences
    from fairseq_cli.hydra_train import cli_main

    cli_main()
    if rank == 0 and "--cfg" not in sys.argv:
        print(f"peak memory of this process: {peak_memory()} bytes", flush=True)


def peak_memory() -> int:
    """The most that torch had of a GPU, or this process of the machine."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_reserved():
        return torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
    if found:  # what getrusage tells begins with the memory of the process that started this one
        return int(found.group(1)) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
