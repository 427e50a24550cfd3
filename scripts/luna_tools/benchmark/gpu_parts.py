"""What scripts/gpu-check.sh measures, and what is to be reached: the Transformer's, or another model's, is 1."""

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

LOCAL = "arch:luna_transformer_local"
FLA = "operator-fla"  # the part that needs flash-linear-attention
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)


class Part(NamedTuple):
    """A table of scripts/benchmark.py.

    Attributes:
        about: what it shows.
        command: of benchmark.py.
        precision: its --precision.
        models: its --models.
        points: its --points.
        quick: the same at tiny sizes.
        rounds: its --rounds.
        seconds: what it may take.
    """

    about: str
    command: str
    precision: str
    models: List[str]
    points: List[str]
    quick: List[str]
    rounds: int
    seconds: int


class Goal(NamedTuple):
    """What a model is to reach beside another at a point of a part.

    Attributes:
        part: its name.
        at: the number of the point.
        measure: "time", "memory" or "kernels", as a ratio, or "speed", which is 1/time.
        model: whose it is.
        beside: the model that is 1.
        bound: at most, of a speed at least.
    """

    part: str
    at: int
    measure: str
    model: str
    beside: str
    bound: float


TESTS = ("the tests that need a GPU", 180)  # and what they may take, in seconds
MODELS = ["transformer", "luna-16", LOCAL]
# the most important first, since the time may end
PARTS: Dict[str, Part] = {
    "train-30": Part(
        "an update at 30 tokens, fp16", "train", "fp16", MODELS, ["30:8192"], ["8:64"], rounds=11, seconds=60
    ),
    "decode-28": Part(
        "translating 28 tokens, beam 5, fp16",
        "decode",
        "fp16",
        MODELS,
        ["28:28:64", "28:28:256"],
        ["5:4:2", "5:4:3"],
        rounds=4,
        seconds=75,
    ),
    "train-1024": Part(
        "an update at 1,024 tokens, bf16", "train", "bf16", MODELS, ["1024:16384"], ["40:80"], rounds=7, seconds=60
    ),
    "train-4096": Part(
        "an update at 4,096 tokens, bf16", "train", "bf16", MODELS, ["4096:16384"], ["64:64"], rounds=7, seconds=60
    ),
    "decode-1000": Part(
        "translating 1,000 tokens into 300, beam 5, fp16",
        "decode",
        "fp16",
        MODELS,
        ["1000:300:16"],
        ["40:6:2"],
        rounds=2,
        seconds=90,
    ),
    "bytes-4096": Part(
        "a byte-level encoder at 4,096 tokens, fp16",
        "length",
        "fp16",
        ["softmax", "fused", "luna-16"],
        ["4096:65536"],
        ["32:64"],
        rounds=7,
        seconds=50,
    ),
    "operator": Part(
        "the causal attention alone, bf16, beside softmax attention",
        "operator",
        "bf16",
        ["luna-16", "luna-16-decaying", "luna-16-unfused", "sdpa"],
        [f"{n}:65536" for n in LENGTHS],
        ["32:64", "64:64"],
        rounds=15,
        seconds=60,
    ),
    "bytes-16384": Part(
        "a byte-level encoder at 16,384 tokens, fp16",
        "length",
        "fp16",
        ["fused", "luna-16"],
        ["16384:65536"],
        ["64:64"],
        rounds=7,
        seconds=50,
    ),
    "train-30-bf16": Part(
        "an update at 30 tokens, bf16", "train", "bf16", MODELS, ["30:8192"], ["8:64"], rounds=11, seconds=60
    ),
    # by itself, for its kernels take long to compile
    FLA: Part(
        "the causal attention alone, bf16, beside flash-linear-attention",
        "operator",
        "bf16",
        ["luna-16", "luna-16-decaying", "fla-gsa", "fla-simple-gla"],
        [f"{n}:65536" for n in LENGTHS],
        ["32:64"],
        rounds=15,
        seconds=180,
    ),
}


def of_training(part: str, luna: Tuple[float, float], packs: Tuple[float, float]) -> List[Goal]:
    """Bounds of time and memory."""
    return [
        Goal(part, 0, measure, model, "transformer", bound)
        for model, bounds in (("luna-16", luna), (LOCAL, packs))
        for measure, bound in zip(("time", "memory"), bounds)
    ]


GOALS = [
    Goal("train-30", 0, "kernels", "luna-16", "transformer", 1.0),
    Goal("train-30", 0, "kernels", LOCAL, "transformer", 1.15),
    *of_training("train-30", (1.0, 1.0), (1.1, 1.1)),
    *of_training("train-30-bf16", (1.0, 1.0), (1.1, 1.1)),
    *of_training("train-1024", (0.7, 0.5), (0.8, 0.55)),
    *of_training("train-4096", (0.35, 0.25), (0.45, 0.3)),
    *(
        Goal(part, at, "time", model, "transformer", bound)
        for part, at, bounds in (
            ("decode-28", 0, (0.4, 0.45)),
            ("decode-28", 1, (0.4, 0.45)),
            ("decode-1000", 0, (0.3, 0.35)),
        )
        for model, bound in zip(MODELS[1:], bounds)
    ),
    Goal("bytes-4096", 0, "speed", "luna-16", "softmax", 5.5),
    Goal("bytes-4096", 0, "memory", "luna-16", "softmax", 0.10),
    Goal("bytes-4096", 0, "speed", "luna-16", "fused", 2.0),
    Goal("bytes-16384", 0, "speed", "luna-16", "fused", 6.0),
    # from 1,024 tokens on
    *(Goal("operator", at, "speed", "luna-16", "sdpa", 1.0) for at in range(1, len(LENGTHS))),
    *(
        Goal(FLA, at, "speed", model, beside, 1.0)
        for at in range(len(LENGTHS))
        for model, beside in (("luna-16", "fla-gsa"), ("luna-16-decaying", "fla-simple-gla"))
    ),
]


def ratio(goal: Goal, models: Dict[str, Any]) -> Optional[float]:
    """What was found of a goal at its point; None where one of the two was not measured."""
    values = [quantity(models.get(name, {}), goal.measure) for name in (goal.model, goal.beside)]
    if not all(values):
        return None
    return values[1] / values[0] if goal.measure == "speed" else values[0] / values[1]


def quantity(found: Dict[str, Any], measure: str) -> float:
    if measure == "memory":
        return found.get("bytes", 0)
    if measure == "kernels":
        launched = found.get("launched", {})
        return launched.get("kernels") or launched.get("operators", 0)
    # of the ratios to the first model, for what happens to all models of a round is in none of them
    return found.get("time", found.get("seconds", {})).get("median", 0)


def alone_on_the_gpu(goal: Goal, models: Dict[str, Any]) -> Optional[float]:
    """The ratio of a goal of time or speed by the GPU's own time, without what the host takes."""
    times = [models.get(name, {}).get("launched", {}).get("gpu ms", 0) for name in (goal.model, goal.beside)]
    if not all(times) or goal.measure not in ("time", "speed"):
        return None
    return times[1] / times[0] if goal.measure == "speed" else times[0] / times[1]


def is_met(goal: Goal, found: float) -> bool:
    return found >= goal.bound if goal.measure == "speed" else found <= goal.bound


def summarise(results: Dict[str, Any], states: Dict[str, str], told: str) -> str:
    """The goals and what was found of them, as Markdown.

    Args:
        results: of each part that has some, its results.json.
        states: of each part that was run, how it ended.
        told: of the machine.
    """
    lines = ["# GPU check", "", told, "", "| part | what | |", "|---|---|---|"]
    abouts = {"tests": TESTS[0], **{name: part.about for name, part in PARTS.items()}}
    lines += [f"| {name} | {about} | {states.get(name, 'not run')} |" for name, about in abouts.items()]
    lines += ["", "Time, memory and kernels are ratios to what stands beside; a speed is one of times, the other way."]
    lines += ["", "| part | at | measure | model | beside | found | on the GPU alone | goal | |", "|" + "---|" * 9]
    for goal in GOALS:
        points = results.get(goal.part, {}).get("points", [])
        if len(points) <= goal.at:
            continue
        point = points[goal.at]
        found, alone = ratio(goal, point["arms"]), alone_on_the_gpu(goal, point["arms"])
        place = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in point.items() if key != "arms")
        row = [goal.part, place, goal.measure, goal.model, goal.beside]
        row += ["" if value is None else f"{value:.2f}" for value in (found, alone)]
        row += [f"{'>=' if goal.measure == 'speed' else '<='} {goal.bound:g}"]
        row += ["not measured" if found is None else "met" if is_met(goal, found) else "missed"]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"
