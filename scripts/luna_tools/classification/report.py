"""What scripts/classify.sh leaves behind: a table like the paper's, and a picture over the length."""

import statistics
from pathlib import Path
from typing import Any, Dict, List, Optional

from fairseq_luna.files import write_json, write_text
from luna_tools.machine import names_of
from luna_tools.plots import draw_by_tokens
from luna_tools.tables import table_of

GUESS = "always guessing the largest class gives"  # in a manifest
HEADS = "tokens", "model", "parameters", "accuracy, %", "seeds", "time of an update", "memory"


def report(out: Path, results: Dict[str, Any]) -> None:
    """Write report.md, results.json, and accuracy.png where there are several lengths.

    Args:
        out: the folder.
        results: runs, settings and commands, as results.json is to hold them.
    """
    runs = results["runs"]
    write_json(out / "results.json", results)
    notes = [told(runs), *dict.fromkeys(of_data(run["data"]) for run in runs)]
    if len({run["length"] for run in runs}) > 1:
        picture = out / "accuracy.png"
        draw_by_tokens(
            runs, "length", lambda run: 100 * run["accuracy"], picture, "length, tokens", "accuracy on the test set, %"
        )
        notes.append("![Accuracy by length](accuracy.png)")
    notes += [f"`{command}`" for command in results["commands"]]
    write_text(out / "report.md", "\n\n".join([table_of([list(HEADS), *rows(runs)]), *notes]) + "\n")


def rows(runs: List[Dict[str, Any]]) -> List[List[str]]:
    """A row for each length and model."""
    table = []
    for length in dict.fromkeys(run["length"] for run in runs):
        models = groups([run for run in runs if run["length"] == length])
        base = models.get("transformer")
        for model, found in models.items():
            accuracies = [100 * run["accuracy"] for run in found]
            spread = f" ({min(accuracies):.2f}-{max(accuracies):.2f})" if len(found) > 1 else ""
            table.append(
                [
                    f"{length:,}",
                    model,
                    f"{found[0]['parameters']:,}",
                    f"{statistics.mean(accuracies):.2f}{spread}",
                    ", ".join(str(run["seed"]) for run in found),
                    ratio(found, base, lambda run: 1 / run["tokens a second"]),
                    ratio(found, base, lambda run: run["peak memory (bytes)"] or 0),
                ]
            )
    return table


def groups(runs: List[Dict[str, Any]]) -> Dict[str, List[Dict[str, Any]]]:
    return {model: [run for run in runs if run["arm"] == model] for model in dict.fromkeys(run["arm"] for run in runs)}


def ratio(found: List[Dict[str, Any]], base: Optional[List[Dict[str, Any]]], of: Any) -> str:
    """A mean, with that of the Transformer as 1; empty where either is not known."""
    if not base or not all(map(of, (*found, *base))):
        return ""
    return f"{statistics.mean(map(of, found)) / statistics.mean(map(of, base)):.2f}"


def told(runs: List[Dict[str, Any]]) -> str:
    machines = names_of(run["machine"] for run in runs)
    return (
        "Accuracy on the test set, of the model that is best in validation; the mean of the seeds, with the lowest and "
        "the highest. Time and memory are those of the training process, the Transformer's is 1; the models were "
        f"trained one after the other, on {machines}. `scripts/benchmark.py length` measures them in turn."
    )


def of_data(facts: Dict[str, Any]) -> str:
    guess = facts[GUESS]
    return (
        f"{facts['name']}: {facts['texts']['train']:,} texts for training and {facts['texts']['test']:,} for the test, "
        f"of up to {facts['longest text, in tokens']:,} {facts['token']}s, in {len(facts['classes'])} classes. Always "
        f"guessing {guess['class']} gives {100 * guess['accuracy']:.2f} %."
    )
