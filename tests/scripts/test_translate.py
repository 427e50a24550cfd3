"""translate.sh and generate.sh beyond the best translation of one model: what fairseq's search can, on tiny models."""

import io
import json
import shutil
import signal
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, fairseq, prepared, run, start, stop_when

import fairseq_luna  # noqa: F401  torch loads fairseq's checkpoints once this is imported

from fairseq.data import Dictionary, data_utils  # isort: skip

from luna_tools.evaluation import generate as generate_script
from luna_tools.evaluation import translate as translate_script
from luna_tools.evaluation import translation as whole_translation
from luna_tools.evaluation.decoding import Hypothesis, possible, rows
from luna_tools.evaluation.search import search_by
from luna_tools.evaluation.texts import write_sources
from luna_tools.inspection import plot_attention
from luna_tools.training.average import average_files

from fairseq_luna import Translator
from fairseq_luna.errors import Problem
from fairseq_luna.files import read_lines
from fairseq_luna.generation.results import Source
from fairseq_luna.text import recipes

POSITIONS = 64  # of the models: the longest source and target in training
MODELS = {
    "luna": ["--arch", "luna_transformer_tiny"],
    "transformer": ["--arch", "transformer"],
    "learned": ["--arch", "transformer", "--encoder-learned-pos", "--decoder-learned-pos"],
}
SOURCES = ["the red house sees a dog", "cat", "we find the old tree under the blue house", "they and we"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Run folders of trained models by their names in MODELS, and their data.

    Of the training pairs those with more than 9 pieces are dropped between raw/ and data-bin/.
    """
    folder = tmp_path_factory.mktemp("a folder with spaces")
    data = prepared(folder, "--max-length", "9")
    training = "--optimizer adam --lr 0.01 --max-tokens 1000 --seed 1 --no-epoch-checkpoints --disable-validation --cpu"
    training += " --num-workers 0 --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 32 --decoder-embed-dim 32"
    training += " --encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64 --share-all-embeddings --clip-norm 1"
    training += f" --encoder-attention-heads 4 --decoder-attention-heads 4 --max-source-positions {POSITIONS}"
    for name, arch in MODELS.items():
        place = folder / name
        place.mkdir()
        (place / "data").symlink_to(data)
        updates = 1 if name == "learned" else 60
        words = [*arch, *training.split(), "--max-target-positions", POSITIONS, "--max-update", updates]
        run(fairseq("train", data / "data-bin", *words, "--save-dir", place / "checkpoints"))
        shutil.copy(place / "checkpoints" / "checkpoint_last.pt", place / "model.pt")
    return folder


@pytest.fixture
def translate(monkeypatch, capfdbinary):
    """translate.sh in this process: what it writes, as lines, for lines on its standard input."""

    def call(models, *args, lines=SOURCES, end="\n"):
        words = [word for model in models for word in ("--model", str(model))]
        monkeypatch.setattr(sys, "argv", ["translate.py", "--cpu", *words, *map(str, args)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(line + end for line in lines).encode())))
        capfdbinary.readouterr()
        translate_script.main()
        return capfdbinary.readouterr().out.decode().split("\n")[:-1]

    return call


def generate(*args, **options) -> str:
    """generate.sh: what it said."""
    return call("luna_tools.evaluation.generate", "--cpu", *args, **options)


def text_of(runs: Path, name: str) -> list:
    return list(read_lines(runs / "data" / "raw" / name))


def generated(runs: Path, name: str) -> list:
    (path,) = (runs / "luna" / "generated").glob(name)
    return list(read_lines(path))


def table(rows: list) -> list:
    """The rows of --nbest: number, score and text."""
    return [(int(number), float(score), text) for number, score, text in (row.split("\t") for row in rows)]


def same(ours: list, theirs: list) -> None:
    """Equal rows, but for the last digits of a score."""
    assert [(number, text) for number, _, text in ours] == [(number, text) for number, _, text in theirs]
    assert [score for _, score, _ in ours] == pytest.approx([score for _, score, _ in theirs], abs=1e-3)


@pytest.mark.stock
def test_nbest_of_an_ensemble(runs, translate):
    """A Luna and a Transformer together, the scores as on fairseq-generate's H- lines, which generate.sh reads."""
    both, sources = [runs / "luna", runs / "transformer"], text_of(runs, "test.en")
    found = table(translate(both, "--nbest", 3, "--lenpen", 0.6, "--buffer", 3, lines=sources))
    assert [number for number, _, _ in found] == [number for number in range(1, 9) for _ in range(3)]
    for first in range(0, len(found), 3):
        scores = [score for _, score, _ in found[first : first + 3]]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1
    best = translate(both, "--lenpen", 0.6, lines=sources)
    assert best == [text for _, _, text in found[::3]]
    assert best not in [translate([model], "--lenpen", 0.6, lines=sources) for model in both]
    generate(*both, "--nbest", 3)
    same(table(generated(runs, "test.beam5.lenpen0.6.nbest3.with-transformer-*.de")), found)


@pytest.mark.stock
def test_tokens_that_share_a_slot(runs, translate):
    """As by fairseq's --model-overrides."""
    luna, sources = runs / "luna", text_of(runs, "test.en")
    found = table(translate([luna], "--nbest", 1, "--tokens-per-slot", 3, lines=sources))
    generate(luna, "--nbest", 1, "--lenpen", 1, "--", "--model-overrides", "{'tokens_per_slot': 3}")
    same(table(generated(runs, "test.beam5.lenpen1.nbest1.de")), found)
    assert [score for _, score, _ in table(translate([luna], "--nbest", 1, lines=sources))] != [row[1] for row in found]


@pytest.mark.stock
def test_constraints(runs, translate, tmp_path):
    """In the order given or in any; what they take beyond the usual length of a translation is added to it."""
    wanted = ["we\tdog", "", "tree " * 30, "cat\t\tthey and"]
    lines = [f"{source}\t{texts}" if texts else source for source, texts in zip(SOURCES, wanted)]
    luna, both = [runs / "luna"], [runs / "luna", runs / "transformer"]
    for models, flags in (luna, []), (both, []), (luna, ["--unordered"]):
        found = translate(models, "--constraints", *flags, lines=lines, end="\r\n")
        for translation, texts in zip(found, wanted):
            place = 0
            for text in filter(None, texts.strip().split("\t")):
                place = translation.index(text, 0 if flags else place) + len(text)
    plain = translate(luna, lines=SOURCES)
    assert translate(luna, "--constraints", lines=SOURCES) == plain
    with pytest.raises(Problem, match="line 2 of the input has constraints but no source"):
        translate(luna, "--constraints", lines=["cat", " \tdog"])

    sources = text_of(runs, "test.en")
    for_each = ["dog\tcat", "", "we", "", "", "tree " * 30, "", "house"]
    (tmp_path / "wanted").write_text("".join(line + "\n" for line in for_each), encoding="utf-8")
    generate(runs / "luna", "--constraints", tmp_path / "wanted", "--lenpen", "1")
    lines = [f"{source}\t{texts}" for source, texts in zip(sources, for_each)]
    assert generated(runs, "test.beam5.lenpen1.constraints-ordered-wanted-*.de") == translate(
        luna, "--constraints", lines=lines
    )
    (tmp_path / "wanted").write_text("dog\n", encoding="utf-8")
    said = generate(runs / "luna", "--constraints", tmp_path / "wanted", code=1)
    assert "wanted has 1 lines, but test has 8 sentences" in said


@pytest.mark.stock
def test_prefix(runs, translate):
    prefix = "dog we " * 20
    found = translate([runs / "luna", runs / "transformer"], "--prefix", prefix, lines=[*SOURCES, ""])
    assert all(text.startswith(prefix.strip() + " ") for text in found[:-1]) and found[-1] == ""
    generate(runs / "luna", "--prefix-size", 2, "--beam", 3)
    recipe, references = recipes.load(runs / "data"), text_of(runs, "test.de")
    for reference, found in zip(references, generated(runs, "test.beam3.lenpen0.6.prefix2.de")):
        pieces = recipe.encode([reference], "de")[0][:2]
        assert found.startswith(recipe.decode([pieces])[0])


@pytest.mark.stock
def test_sampling(runs, translate):
    """By the seed; with nothing but the likeliest piece to draw it is a beam of one."""
    models, sources = [runs / "luna"], text_of(runs, "test.en")
    drawn = translate(models, "--sampling", "--nbest", 3, "--temperature", 2, lines=sources)
    assert [number for number, _, _ in table(drawn)] == [number for number in range(1, 9) for _ in range(3)]
    assert translate(models, "--sampling", "--nbest", 3, "--temperature", 2, "--seed", 1, lines=sources) == drawn
    assert translate(models, "--sampling", "--nbest", 3, "--temperature", 2, "--seed", 2, lines=sources) != drawn
    greedy = translate(models, "--beam", 1, "--nbest", 1, lines=sources)
    for few in ("--sampling-topk", 1), ("--sampling-topp", 1e-9):
        assert translate(models, "--sampling", "--nbest", 1, *few, lines=sources) == greedy
    assert len(translate(models, "--sampling", "--sampling-topk", 10**6, lines=sources)) == len(sources)
    generate(*models, "--sampling", "--sampling-topk", 1, "--nbest", 2, "--lenpen", 1)
    rows = table(generated(runs, "test.beam2.lenpen1.nbest2.sampling.topk1.seed1.de"))
    same(rows[::2], table(greedy))
    same(rows[1::2], table(greedy))


@pytest.mark.stock
@pytest.mark.parametrize("name", ["luna", "transformer"])
def test_a_source_longer_than_the_positions(runs, translate, name):
    """All of it is read, and longer texts are written, where positions are not learned."""
    model, recipe = runs / name, recipes.load(runs / "data")
    source = " ".join(SOURCES * 5)
    pieces = recipe.encode([source])[0]
    assert len(pieces) > POSITIONS + 10
    found = table(translate([model], "--nbest", 2, "--beam", 2, lines=[source]))
    anything = "{'max_source_positions': 1000, 'max_target_positions': 1000}"
    limits = ["--max-source-positions", 1000, "--max-target-positions", 1000, "--model-overrides", anything]
    search = ["--nbest", 2, "--beam", 2, "--max-len-a", 1.5, "--max-len-b", 10, "--path", model / "model.pt", "--cpu"]
    command = fairseq("interactive", runs / "data" / "data-bin", *search, *limits)
    said = run(command, input=" ".join(pieces)).stdout.split("\n")
    theirs = [line.split("\t")[1:] for line in said if line.startswith("H-0")]
    same(found, [(1, float(score), recipe.decode([text.split(" ")])[0]) for score, text in theirs])
    (cut,) = recipe.decode([pieces[: POSITIONS - 1]])
    assert [score for _, score, _ in table(translate([model], "--nbest", 2, "--beam", 2, lines=[cut]))] != [
        score for _, score, _ in found
    ]
    long = ("dog " * (POSITIONS + 10)).strip()
    assert translate([model], "--prefix", long, lines=["cat"])[0].startswith(long)


def test_generate_of_a_sentence_longer_than_the_positions(runs, translate, tmp_path):
    """As by translate.sh, with no more said, but where positions are learned."""
    sources = text_of(runs, "test.en")
    sources[3] = " ".join(SOURCES * 5)
    data = tmp_path / "data"
    shutil.copytree(runs / "data", data)
    (data / "raw" / "test.en").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
    pieces = [" ".join(line) + "\n" for line in recipes.load(data).encode(sources)]
    (data / "pieces" / "test.en").write_text("".join(pieces), encoding="utf-8")
    dictionaries = ["--srcdict", data / "data-bin" / "dict.en.txt", "--tgtdict", data / "data-bin" / "dict.de.txt"]
    words = ["-s", "en", "-t", "de", "--testpref", data / "pieces" / "test", *dictionaries]
    run(fairseq("preprocess", *words, "--destdir", data / "data-bin"))
    out = tmp_path / "test.de"
    generate(runs / "luna", "--data", data, "--lenpen", 1, "--out", out)
    assert list(read_lines(out)) == translate([runs / "luna"], lines=sources)
    said = generate(runs / "luna", runs / "learned", "--data", data, code=1)
    assert "for the 8 references" in said and f"max_positions=({POSITIONS}, {POSITIONS})" in said
    assert "Learned positions end there" in said


def test_a_sentence_longer_than_a_batch(runs):
    def runner(command, on_line):
        with pytest.raises(AssertionError) as failed:
            data_utils.batch_by_size(np.array([0]), lambda i: 9, max_tokens=8)
        on_line(f"AssertionError: {failed.value}")
        raise Problem("this command failed")

    with pytest.raises(Problem, match="more tokens than a batch .*max_tokens=8.*: give a larger --max-tokens"):
        search_by([], runs / "data", runner, Namespace(n=0, total=1))


@pytest.fixture
def commanded(monkeypatch):
    """generate() in this process, without the search: the words of the command that it would have run."""

    def call_it(run: Path, *words) -> list:
        given: list = []

        def search(command, data, runner, shown):
            given.extend(command)
            return {number: [Hypothesis(0, "")] for number in range(shown.total)}

        monkeypatch.setattr(whole_translation, "search_by", search)
        monkeypatch.setattr(generate_script, "go_on_later", lambda: None)
        monkeypatch.setattr(sys, "argv", ["generate.py", str(run), *map(str, words)])
        generate_script.main()
        return given

    return call_it


def test_search_of_what_there_is(runs, tmp_path, commanded):
    """No more pieces are drawn from than there are, and a prefix has room beside the rest."""
    dictionary = runs / "data" / "data-bin" / "dict.de.txt"
    size = len(Dictionary.load(str(dictionary)))
    for asked, given in (10**6, size), (size - 1, size - 1):
        assert possible({"sampling_topk": asked, "beam": 1}, dictionary) == {"sampling_topk": given, "beam": 1}
    words = commanded(runs / "luna", "--sampling", "--sampling-topk", 10**6, "--out", tmp_path / "a")
    assert words[words.index("--sampling-topk") + 1] == str(size)
    words = commanded(runs / "luna", "--prefix-size", 7, "--out", tmp_path / "b")
    assert words[words.index("--prefix-size") + 1] == "7" and words[words.index("--max-len-b") + 1] == "17"


def test_other_models_have_other_files(tmp_path):
    """Also where their names are the same, and those of files with constraints; and wherever all of them lie."""
    names = []
    for folder in "here", "there":
        first, *others = [tmp_path / folder / study / "seed1" for study in "abc"]
        for other in others:
            names.append(generate_script.asked_for(first, generate_script.Extras([other])))
            more = generate_script.Extras((), {"constraints": "ordered"}, constraints=other / "wanted.txt")
            names.append(generate_script.asked_for(first, more))
    assert names[:4] == names[4:]
    found = [name for (name,) in names[:4]]
    assert len(set(found)) == 4 and found[0].startswith("with-seed1-")
    assert found[1].startswith("constraints-ordered-wanted-")


def test_sources_of_the_training_set(runs, tmp_path):
    """Written anew for other data; what somebody else has written or changed is left alone."""
    data, ours = tmp_path / "data", tmp_path / "generated"
    shutil.copytree(runs / "data", data)
    ours.mkdir()
    recipe, path = recipes.load(data), tmp_path / "train.en"

    def write(place: Path) -> list:
        write_sources(data, recipe, place, ours)
        return list(read_lines(place))

    first = write(path)
    assert 0 < len(first) < len(text_of(runs, "train.en"))
    made = path.stat().st_mtime_ns
    assert write(path) == first and path.stat().st_mtime_ns == made
    (tmp_path / "train.en.json").unlink()  # as an earlier version left it
    assert write(path) == first and (tmp_path / "train.en.json").exists()

    for name in "raw/train.en", "pieces/train.en":
        lines = list(read_lines(data / name))
        (data / name).write_text("".join(f"{line}\n" for line in (lines * 2)), encoding="utf-8")
    (data / "manifest.json").write_text((data / "manifest.json").read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert write(path) == first * 2
    path.write_text("mine\n")
    with pytest.raises(Problem, match="train.en is there, and not as generate.sh wrote it"):
        write(path)
    assert path.read_text() == "mine\n" and not list(tmp_path.glob("*.part"))
    (tmp_path / "other.en.json").write_text("[]")
    with pytest.raises(Problem, match="other.en.json is there"):
        write(tmp_path / "other.en")
    (ours / "train.en").write_text("of an earlier version, and of other data\n")
    assert write(ours / "train.en") == first * 2


def test_a_file_of_others_is_not_written_over(runs, tmp_path):
    (tmp_path / "mine.de").write_text("mine\n")
    said = generate(runs / "luna", "--out", tmp_path / "mine.de", code=1)
    assert "mine.de is there, and not as generate.sh wrote it" in said
    (tmp_path / "other.de.json").write_text("{}")
    assert "other.de.json is there" in generate(runs / "luna", "--out", tmp_path / "other.de", code=1)


def test_stopped_within_the_first_part(runs, tmp_path, monkeypatch):
    def stopped(*args, **options):
        raise KeyboardInterrupt("stopped; the same command goes on from here")

    monkeypatch.setattr(generate_script, "generate", stopped)
    monkeypatch.setattr(generate_script, "go_on_later", lambda: None)
    monkeypatch.setattr(sys, "argv", ["generate.py", str(runs / "luna"), "--out", str(tmp_path / "a.de")])
    with pytest.raises(KeyboardInterrupt, match="the same command begins anew"):
        generate_script.main()
    (tmp_path / "a.de.parts").mkdir()
    (tmp_path / "a.de.parts" / "0").touch()
    with pytest.raises(KeyboardInterrupt, match="goes on from here"):
        generate_script.main()


def test_learned_positions_end(runs, caplog):
    """What goes in is cut with a word; what is to come out is refused."""
    translator = Translator.from_run(runs / "learned", device="cpu")
    source = " ".join(SOURCES * 5)
    pieces = len(recipes.load(runs / "data").encode([source])[0])
    assert pieces > POSITIONS
    translator.translate([Source(source, name="line 7")], beam=1)
    cut = f"has {pieces + 1} pieces: only the first {POSITIONS} are translated, the model's limit"
    assert [record.getMessage() for record in caplog.records] == [f"line 7 {cut}"]
    most = ("dog " * (POSITIONS - 1)).strip()
    assert translator.translate(["cat"], beam=1, prefix=most)[0].startswith(most)
    with pytest.raises(Problem, match="prefix: 64 pieces are more than the 63 that the model can write"):
        translator.stream(["cat"], prefix=most + " cat")
    with pytest.raises(Problem, match="sentence 1, constraints: 64 pieces are more than the 63"):
        translator.translate([Source("cat", [most, "cat"])])
    with pytest.raises(Problem, match="the translation of sentence 1 has 65 pieces, more than the 64"):
        translator.score(["cat"], [most + " cat"])


REFUSED = {
    "nbest": (["--nbest", "6"], "--nbest 6 is more than --beam 5"),
    "no-nbest": (["--nbest", "0"], "must be at least 1, but is 0"),
    "topk": (["--sampling-topk", "5"], "--sampling-topk is for --sampling"),
    "seed": (["--seed", "5"], "--seed is for --sampling"),
    "two": (["--sampling", "--sampling-topk", "5", "--sampling-topp", "0.5"], "not allowed with"),
    "topp": (["--sampling", "--sampling-topp", "1.5"], "must be above 0 and at most 1, but is 1.5"),
    "temperature": (["--sampling", "--temperature", "0"], "must be above 0, but is 0"),
    "unordered": (["--unordered"], "--unordered is for --constraints"),
    "prefix": (["--constraints", "--prefix", "dog"], "--constraints and --prefix do not go together"),
    "sampling": (["--constraints", "--sampling"], "--constraints and --sampling do not go together"),
}


@pytest.mark.parametrize("words, message", REFUSED.values(), ids=REFUSED)
def test_bad_values(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["translate.py", "--model", "nowhere", *words])
    with pytest.raises(SystemExit) as ended:
        translate_script.parse_args()
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_bad_values_of_generate(runs, tmp_path):
    luna = runs / "luna"
    assert "--nbest 6 is more than --beam 5" in generate(luna, "--nbest", 6, code=2)
    assert "--nbest is for test and valid" in generate(luna, "--subset", "train", "--nbest", 2, code=2)
    assert "must end in .de" in generate(luna, "--subset", "train", "--out", tmp_path / "train.txt", code=1)
    assert "cannot be given after --" in generate(luna, "--", "--constraints", code=1)


def test_a_text_that_the_vocabulary_cannot_spell(runs):
    recipe = recipes.load(runs / "data")
    (piece,) = recipe.encode(["dog"])[0]
    assert recipes.forced_pieces(recipe, "dog", {piece}, "--prefix") == [piece]
    with pytest.raises(Problem, match="--prefix 'dog cat' cannot be forced: the vocabulary lacks .*cat"):
        recipes.forced_pieces(recipe, "dog cat", {piece}, "--prefix")


def test_rows_have_three_columns():
    assert rows(7, [Hypothesis(-0.5, "a\tb"), Hypothesis(-2, "")]) == "7\t-0.5000\ta b\n7\t-2.0000\t\n"


def test_an_ensemble_needs_one_vocabulary(runs, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(runs / "luna", other)
    with open(other / "data" / "data-bin" / "dict.de.txt", "a", encoding="utf-8") as file:
        file.write("more 1\n")
    with pytest.raises(Problem, match=f"{other}/data has not the data-bin/dict.de.txt of .*--vocabulary-of"):
        Translator([runs / "luna", other], device="cpu")
    assert "has not the data-bin/dict.de.txt" in generate(runs / "luna", other, code=1)
    manifest = other / "data" / "manifest.json"
    settings = json.loads(manifest.read_text(encoding="utf-8"))
    settings["settings"].update(source="de", target="en")
    manifest.write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(Problem, match="is of de-en, but .* of en-de"):
        Translator([runs / "luna", other], device="cpu")


def test_average_of_a_transformer(runs, tmp_path):
    state = torch.load(str(runs / "transformer" / "model.pt"), map_location="cpu")
    state["model"] = {name: 3 * value for name, value in state["model"].items()}
    torch.save(state, str(tmp_path / "thrice.pt"))
    average_files([runs / "transformer" / "model.pt", tmp_path / "thrice.pt"], tmp_path / "mean.pt")
    mean = torch.load(str(tmp_path / "mean.pt"), map_location="cpu")["model"]
    for name, value in state["model"].items():
        torch.testing.assert_close(mean[name], value / 3 * 2)


def test_attention_is_drawn(runs, tmp_path, monkeypatch, capsys):
    """plot_attention.py looks at models by the same Translator."""
    (tmp_path / "text").write_text(f"{SOURCES[0]}\n\n{SOURCES[1]}\n", encoding="utf-8")
    words = ["--model", str(runs / "luna"), "--out", str(tmp_path / "drawn.png"), str(tmp_path / "text")]
    monkeypatch.setattr(sys, "argv", ["plot_attention.py", *words])
    plot_attention.main()
    found = json.loads((tmp_path / "drawn.png.json").read_text(encoding="utf-8"))
    assert found["sentences"] == 2 and set(found["means"]) == {"encoder 1", "cross 1"}
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG") and "cross 1" in capsys.readouterr().out


# ---- sequence-level distillation: the three commands of the README


@pytest.mark.release
@pytest.mark.stock
def test_distillation(runs, tmp_path):
    """The training set by the teacher, in parts, stopped and gone on with; data with its vocabulary; the student."""
    teacher, data = runs / "luna", runs / "data"
    whole, out = tmp_path / "whole.de", teacher / "generated" / "train.beam1.lenpen0.6.de"
    options = [teacher, "--subset", "train", "--beam", 1]
    generate(*options, "--out", whole)
    recipe = recipes.load(data)
    pairs = zip(text_of(runs, "train.en"), text_of(runs, "train.de"))
    kept = [source for source, target in pairs if max(map(len, recipe.encode([source, target]))) <= 9]
    assert list(read_lines(tmp_path / "whole.en")) == kept
    assert len(list(read_lines(whole))) == len(kept) < len(text_of(runs, "train.en"))

    parts = [*options, "--part", 100, "--max-tokens", 200]
    first, second = (out.with_name(out.name + ".parts") / name for name in "01")
    said = stop_when(first.exists, start("luna_tools.evaluation.generate", "--cpu", *parts), signal.SIGINT)[1]
    assert "the same command goes on from here" in said
    assert not second.exists() and not out.exists()
    number, score, text = first.read_text(encoding="utf-8").splitlines()[0].split("\t")
    first.write_text(f"{number}\t{score}\tof before\n" + first.read_text(encoding="utf-8").partition("\n")[2])
    generate(*parts)
    expected = list(read_lines(whole))
    assert expected[int(number) - 1] == text
    expected[int(number) - 1] = "of before"
    assert list(read_lines(out)) == expected and not first.parent.exists()
    assert list(read_lines(out.with_suffix(".en"))) == kept
    assert "is there already" in generate(*parts)

    splits = ["--train", out.with_suffix(""), "--valid", data / "raw" / "valid", "--test", data / "raw" / "test"]
    student, languages = tmp_path / "data", ["--source", "en", "--target", "de"]
    words = [*languages, "--vocabulary-of", data, "--out", student, "--workers", "1"]
    call("luna_data.parallel.prepare_corpus", *splits, *words)
    for name in "dict.en.txt", "dict.de.txt":
        assert (student / "data-bin" / name).read_bytes() == (data / "data-bin" / name).read_bytes()
    assert list(read_lines(student / "raw" / "train.de")) == [text for text in expected if text]
    words = "model=luna_transformer_tiny", "model.share_all_embeddings=true", "model.encoder_embed_dim=32"
    words += "optimization.max_update=2", "--cpu", "--data", student, "--out", tmp_path / "student"
    call("luna_tools.training.command", "quickstart", *words)
    assert (tmp_path / "student" / "checkpoints" / "checkpoint_last.pt").exists()
