"""Parallel text to fairseq data: clean text, tokens, vocabulary, pieces, binarised splits, a manifest.

Each step leaves its output whole or not at all, with a note in steps.json of what it was made of; it is passed over
where that is still the same. Blocks of lines go to all processes and come back in order: memory does not grow with
the text, and nothing depends on the number of processes.
"""

from luna_tools.run_folder import differences

from fairseq_luna.files import read_json, remove, sha256
from luna_data.parallel.binarise import binarise
from luna_data.parallel.clean import clean
from luna_data.parallel.corpus import Corpus
from luna_data.parallel.learn import learn
from luna_data.parallel.notes import Notes
from luna_data.parallel.report import show_table, write_manifest
from luna_data.parallel.split import split
from luna_data.parallel.tokenise import tokenise
from luna_data.parallel.versions import versions_of


def prepare(corpus: Corpus) -> None:
    """Do all steps that are not done yet, and tell what came of them."""
    old = read_json(corpus.manifest, {})
    changed = differences(old.get("settings", {}), corpus.settings)
    if changed:
        remove(corpus.manifest)
        if old:
            corpus.say("preparing again: " + "; ".join(changed))
    notes = Notes(corpus.out, corpus.manifest)
    prepare_text(corpus, notes)
    prepare_pieces(corpus, notes)
    if corpus.manifest.exists():
        corpus.say(f"{corpus.out} holds this already")
    else:
        write_manifest(corpus, notes)
        show_table(corpus, notes)


def prepare_text(corpus: Corpus, notes: Notes) -> None:
    """The text as pieces are learnt from it and cut from it, and the vocabulary."""
    sums = {name: value for name, value in corpus.settings.items() if name.startswith("sha256 of ")}
    text = {**corpus.pick("source", "target", "max_characters", "limit"), **sums}
    notes.step("text", "", text, [f"raw/{name}" for name in corpus.files()], lambda: clean(corpus))
    lines, before = notes.result("text")["texts"], "text"
    if corpus.tokenised.name == "tokens":
        outputs = [f"tokens/{name}" for name in corpus.files()]
        notes.step("tokens", before, versions_of("sacremoses"), outputs, lambda: tokenise(corpus, lines))
        before = "tokens"
    if "vocabulary" in corpus.settings:
        learning = corpus.pick("vocabulary")
    else:
        learning = {**corpus.pick("recipe", "vocab_size"), **versions_of(corpus.recipe.tool)}
    notes.step("vocabulary", before, learning, [corpus.recipe.model], lambda: learn(corpus, lines))


def prepare_pieces(corpus: Corpus, notes: Notes) -> None:
    """The text in pieces, and binarised."""
    lines = notes.result("text")["texts"]
    cutting = {**corpus.pick("max_length", "max_ratio"), "model": sha256(corpus.out / corpus.recipe.model)}
    if "dictionary" in corpus.settings:
        cutting.update(corpus.pick("dictionary"))
    outputs = [f"pieces/{name}" for name in corpus.files()]
    notes.step("pieces", "vocabulary", cutting, outputs, lambda: split(corpus, lines))
    pair, kept = "-".join(corpus.languages), notes.result("pieces")["kept"]
    outputs = [f"data-bin/{name}.{pair}.{lang}.{kind}" for name, lang in corpus.sides() for kind in ("bin", "idx")]
    outputs.append(f"data-bin/dict.{corpus.args.source}.txt")
    notes.step("data-bin", "pieces", versions_of("fairseq"), outputs, lambda: binarise(corpus, kept))
