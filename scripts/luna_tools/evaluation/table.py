"""The table of an evaluation, to put beside the paper's."""

from typing import List, Optional

from luna_tools.evaluation.scores import RESAMPLES

COMPOUND = "tokenised BLEU, compounds split"
COLUMNS = {COMPOUND: COMPOUND, "sacreBLEU": "BLEU", "chrF2++": "chrF2++", "TER": "TER"}  # what the report calls them
# The paper's table (arXiv 2106.01540): parameters in millions, and very likely tokenised, compound-split BLEU.
PAPER = (
    ("Transformer-base, Adam", 64.9, 27.8),
    ("Transformer-base, Apollo", 64.9, 28.3),
    ("RFA", 66.2, 27.2),
    ("Luna, tied, elu, l = 16", 69.6, 27.1),
    ("Luna, tied, elu, l = 32", 69.7, 27.3),
    ("Luna, tied, softplus, l = 16", 69.6, 27.3),
    ("Luna, tied, softplus, l = 32", 69.7, 27.5),
    ("Luna, untied, elu, l = 16", 77.5, 27.4),
    ("Luna, untied, elu, l = 32", 77.6, 27.6),
    ("Luna, untied, softplus, l = 16", 77.5, 27.6),
    ("Luna, untied, softplus, l = 32", 77.6, 27.8),
)


# ---- the table


def table(report: dict, other: Optional[dict]) -> str:
    """Ours, then the paper's where the corpus is the same, then what the figures rest on."""
    ours = [report, other] if other else [report]
    rows = [row(each) for each in ours]
    notes = [note(each) for each in ours]
    if report["data"]["corpus"] == "wmt14-en-de":
        rows += [[f"{name} (paper)", f"{size}M", f"{bleu}", "", "", ""] for name, size, bleu in PAPER]
        notes.append(
            "(paper): arXiv 2106.01540. Its BLEU is very likely tokenised, with compounds split: compare ours in that "
            "column alone."
        )
    if report["against"]:
        tests = report["against"]["paired bootstrap"].items()
        found = (f"{name} {test['this'] - test['other']:+.2f} (p = {test['p-value']:.3g})" for name, test in tests)
        notes.append(f"{report['name']} against {report['against']['name']}, paired bootstrap: {', '.join(found)}.")
    notes.append(f"±: half of the 95 % interval of {RESAMPLES:,} bootstrap resamples. Signatures:")
    lines = [["system", "parameters", *COLUMNS], ["---"] * (2 + len(COLUMNS)), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    signatures = []
    for title, name in COLUMNS.items():
        found = report["scores"][name]
        parts = [f"`{found['signature']}`"] if "signature" in found else []
        signatures.append(" ".join([f"- {title}:", *parts, found.get("how", "")]).strip())
    return "\n\n".join([text, *notes]) + "\n\n" + "\n".join(signatures) + "\n"


def row(report: dict) -> List[str]:
    model, official = report["model"], report["data"]["official test set"]
    name = f"{report['name']}: {model['arch']}"
    if "projection length" in model:
        tied = "tied" if model["tied"] else "untied"
        name += f", {tied}, {model['causal activation']}, l = {model['projection length']}"
        name += "".join(f", {choice.replace('_', ' ')} {value}" for choice, value in model.get("choices", {}).items())
    if official is False:
        name += " (not the official test set)"
    cells = [f"**{name}**".replace("|", "\\|"), f"{model['parameters'] / 1e6:.1f}M"]
    for name in COLUMNS.values():
        found = report["scores"][name]
        known = found["score"] is not None
        cells.append(f"{found['score']:.2f} ± {found['95 % interval']['plus or minus']:.2f}" if known else "")
    return cells


def note(report: dict) -> str:
    model, decoding, data = report["model"], report["decoding"], report["data"]
    official = {True: " (the official test set)", False: " (not the official test set)"}.get(
        data["official test set"], ""
    )
    named = data.get("test set", "test")
    test = "test sentences" if named == "test" else f"sentences of {named}"
    sentences = sum(bucket["sentences"] for bucket in report["BLEU by words of the source"])
    chosen = ", chosen on the validation set" if decoding["sweep"] else ""
    inputs = model["average of"]
    averaged = f"checkpoints averaged: {len(inputs) if isinstance(inputs, list) else inputs}"
    updates = "an unknown number of" if model["updates"] is None else f"{model['updates']:,}"
    return (
        f"{report['name']}: {updates} updates, {averaged}; beam {decoding['beam']}, length penalty "
        f"{decoding['lenpen']:g}{chosen}; {sentences:,} {test}{official}; "
        f"data recipe {data['recipe']}."
    )
