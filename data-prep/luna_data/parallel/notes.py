"""What was done in a folder, of what, and what came of it: steps.json."""

import hashlib
import json
from pathlib import Path
from typing import Any, Callable, Dict, List

from fairseq_luna.files import read_json, remove, write_json
from luna_data.folder import stamp
from luna_data.meter import Meter


class Notes:
    """The steps that were done in a folder. One is passed over where what it would be made of is still the same."""

    def __init__(self, out: Path, manifest: Path) -> None:
        """
        Args:
            out: the folder.
            manifest: the file that is true only until a step is done anew.
        """
        self.out, self.manifest, self.path = out, manifest, out / "steps.json"
        self.steps: Dict[str, Dict[str, Any]] = read_json(self.path, {})
        self.order: List[str] = []  # of the steps that this recipe has

    def result(self, name: str) -> Dict[str, Any]:
        """What is known of a step that is done."""
        return self.steps[name]["result"]

    def figures(self) -> Dict[str, Dict[str, float]]:
        """Time and memory of each step."""
        return {name: self.steps[name]["figures"] for name in self.order}

    def step(self, name: str, before: str, settings: dict, outputs: List[str], work: Callable[[], dict]) -> None:
        """Do `work`, which gives what is to be known of it, unless its outputs are there and were made of the same."""
        self.order.append(name)
        origin = json.dumps([settings, self.steps[before]["origin"] if before else ""], sort_keys=True)
        origin = hashlib.sha256(origin.encode()).hexdigest()
        done = self.steps.get(name, {})
        if done.get("origin") == origin and done["outputs"] == self.stamps(outputs):
            return
        remove(self.manifest)
        if self.steps.pop(name, None):
            write_json(self.path, self.steps)
        with Meter() as meter:
            result = work()
        figures = {
            "seconds": round(meter.seconds, 2),
            "lines per second": round(result.pop("lines") / meter.seconds),
            "peak memory MB": round(meter.peak / 1e6),
        }
        note = {"origin": origin, "settings": settings, "outputs": self.stamps(outputs)}
        self.steps[name] = {**note, "figures": figures, "result": result}
        write_json(self.path, self.steps)

    def stamps(self, outputs: List[str]) -> dict:
        """Size and time of change of each output; None for one that is missing."""
        paths = {name: self.out / name for name in outputs}
        return {name: stamp(path) if path.exists() else None for name, path in paths.items()}
