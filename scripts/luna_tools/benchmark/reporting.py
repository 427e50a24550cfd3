"""What scripts/benchmark.py leaves behind: tables and curves."""

from pathlib import Path
from typing import Any, Dict, List

from fairseq_luna.files import whole
from luna_tools.console import teller

say = teller("benchmark")


# of what a step launches: the key, the heading, how it is shown
ON_GPU = (("kernels", "kernels", ",.0f"), ("launches", "launches", ",.0f"), ("gpu ms", "GPU ms", ",.2f"))
ON_CPU = (("operators", "operators", ",.0f"),)
IN_TRAINING = (*ON_CPU, ("without the optimiser", "without the optimiser", ",.0f"))
NOTES = {
    True: "Kernels, launches (of a kernel, or of a graph of many) and the GPU's own time are those of {step}.",
    False: "Operators are those of torch that work on numbers and call no other that does, in {step}; "
    "on a GPU most of them would be a kernel each.",
}


def tabulate(command: str, results: List[Dict[str, Any]], gpu: bool) -> str:
    """A table with a line for each model at each point."""
    keys = [key for key in results[0] if key != "arms"]
    decode = command == "decode"
    rate = "sentences a second" if decode else "tokens a second"
    launched = ON_GPU if gpu else IN_TRAINING if command == "train" else ON_CPU
    head = [*(key.replace("_", " ") for key in keys), "model", "time", "time, the first = 1 (quartiles)", "speed"]
    head += ["ms a token"] * decode + [rate] + [title + " a token" * decode for _, title, _ in launched]
    head += ["memory", "memory, the first = 1"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for result in results:
        for name, found in result["arms"].items():
            row = [*(f"{result[key]:,}" for key in keys), name]
            if "error" in found:
                row += [found["error"].strip().splitlines()[-1][:80]]
                row += [""] * (len(head) - len(row))
            else:
                row += times(found)
                if decode:
                    token = found.get("seconds a token")
                    row.append(f"{1000 * token['median']:.1f}" if token else "")
                row.append(f"{found[rate]:,.0f}" if found[rate] >= 100 else f"{found[rate]:.1f}")
                counts = found.get("launched", {})
                row += [format(counts[key], form) if counts.get(key) else "" for key, _, form in launched]
                row.append(f"{found['bytes'] / 2**20:,.0f} MB" if "bytes" in found else "")
                row.append(f"{found['memory']:.2f}" if "memory" in found else "")
            lines.append("| " + " | ".join(row) + " |")
    step = "one step of the search" if decode else "one step"
    return "\n".join(lines) + f"\n\n{NOTES[gpu].format(step=step)}\n"


def times(found: Dict[str, Any]) -> List[str]:
    seconds, time = show_seconds(found["seconds"]["median"]), found.get("time")
    if not time:
        return [seconds, "", ""]
    quartiles = f"{time['lower quartile']:.2f}-{time['upper quartile']:.2f}"
    return [seconds, f"{time['median']:.2f} ({quartiles})", f"{1 / time['median']:.2f}x"]


def show_forms(results: List[Dict[str, Any]]) -> str:
    """A table of the form that each of the plugin's operators took in each model, and why it was no kernel."""
    lines = ["| at | model | operator | form | why no kernel |", "|---|---|---|---|---|"]
    for result in results:
        place = show_point(result)
        for name, found in result["arms"].items():
            forms = found.get("forms") or {"": {"form": "none of fairseq_luna's operators ran", "why": None}}
            if "error" not in found:
                lines += [
                    f"| {place} | {name} | {operator} | {chosen['form']} | {chosen['why'] or ''} |"
                    for operator, chosen in forms.items()
                ]
    return "\n".join(lines) + "\n"


def show_point(point: Dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in point.items() if key != "arms")


def show_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def draw(command: str, results: List[Dict[str, Any]], folder: Path) -> None:
    """Time and memory by length, or bars where the points differ in more than that."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        say("matplotlib is not installed: no curves.png")
        return
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    names = list(results[0]["arms"])
    labels = [":".join(str(v) for k, v in result.items() if k != "arms") for result in results]
    lengths = [result["length"] for result in results]
    curves = command != "decode" and len(results) > 1
    for index, (key, title) in enumerate((("time", "time of a step"), ("memory", "peak memory")), 1):
        axes = figure.add_subplot(1, 2, index)
        for number, name in enumerate(names):
            values = [value_of(result["arms"][name], key) for result in results]
            if curves:
                axes.plot(lengths, values, marker="o", label=name)
            else:
                width = 0.8 / len(names)
                axes.bar([i + number * width for i in range(len(values))], values, width, label=name)
        if curves:
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
            axes.minorticks_off()
            axes.set_xlabel("length in tokens")
            axes.set_ylim(bottom=0)
        else:
            axes.set_xticks([i + 0.4 - 0.4 / len(names) for i in range(len(labels))], labels)
            axes.set_xlabel(":".join(k.replace("_", " ") for k in results[0] if k != "arms"))
        axes.set_ylabel(f"{title}, {names[0]} = 1")
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for suffix in "png", "svg":
        with whole(folder / f"curves.{suffix}") as file:
            figure.savefig(file, format=suffix, dpi=120)


def value_of(found: Dict[str, Any], key: str) -> float:
    value = found.get(key, float("nan"))
    return value["median"] if isinstance(value, dict) else value
