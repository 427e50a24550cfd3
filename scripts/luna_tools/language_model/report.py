"""What scripts/language-model.sh leaves behind: a table, a picture, and what the models wrote."""

from pathlib import Path
from typing import Any, Dict, List

from fairseq_luna.files import write_json, write_text
from luna_tools.machine import names_of
from luna_tools.plots import draw_by_tokens
from luna_tools.tables import table_of

HEADS = "model", "context", "seed", "parameters", "perplexity", "updates", "tokens/s", "peak memory"


def report(out: Path, results: Dict[str, Any]) -> None:
    """Write report.md, results.json, continuations.txt, and perplexity.png where there are several contexts.

    Args:
        out: the folder.
        results: runs, settings, data and commands, as results.json is to hold them.
    """
    runs = results["runs"]
    write_json(out / "results.json", results)
    write_text(out / "continuations.txt", "\n".join(map(written, runs)))
    notes = [notes_on(runs)]
    if len({run["context"] for run in runs}) > 1:
        picture, across = out / "perplexity.png", "context in training, tokens"
        draw_by_tokens(
            runs, "context", lambda run: run["perplexity"], picture, across, "perplexity per token of the test set"
        )
        notes.append("![Perplexity by context](perplexity.png)")
    notes += [f"`{command}`" for command in results["commands"]]
    write_text(out / "report.md", "\n\n".join([table_of([list(HEADS), *map(row, runs)]), *notes]) + "\n")


def row(run: Dict[str, Any]) -> List[str]:
    memory = run["peak memory (bytes)"]
    return [
        run["arm"],
        f"{run['context']:,}",
        str(run["seed"]),
        f"{run['parameters']:,}",
        f"{run['perplexity']:.2f}",
        f"{run['updates']:,}",
        f"{run['tokens a second']:,}",
        f"{memory / 2**20:,.0f} MB" if memory else "",
    ]


def notes_on(runs: List[Dict[str, Any]]) -> str:
    machines = names_of(run["machine"] for run in runs)
    return (
        "Perplexity per token of the test set, of the model with the lowest validation loss, by fairseq-eval-lm: "
        "each token is predicted from at least three quarters of the context (`--context-window`), where the text has "
        "as many before it. Speed and memory are those of the training process (of one that was not killed), on "
        f"{machines}; on a CPU memory is all that the process held at its peak, imports included."
    )


def written(run: Dict[str, Any]) -> str:
    head = f"{run['arm']}, context {run['context']:,}, seed {run['seed']}: what was given | what the model wrote\n\n"
    return head + "".join(f"{begun} | {text[len(begun) :].strip()}\n" for begun, text in run["continuations"])
