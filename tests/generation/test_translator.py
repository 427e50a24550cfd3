"""The Translator of Python, and models packed to hand on."""

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from commands import ENV, ROOT
from test_stored import PINNED, STORED, translations

from fairseq_luna import Translator
from fairseq_luna.errors import Problem
from fairseq_luna.files import whole
from fairseq_luna.generation import packing
from fairseq_luna.generation.draws import Draws
from fairseq_luna.generation.places import manifest_for
from fairseq_luna.generation.results import Score, Source, Translation
from fairseq_luna.text.recipes import SentencePiece

SOURCES = [row["source"] for row in PINNED["untied"]]
TEXT = ["a big dog", "he did a bad thing", "big egg", "deaf bee", "a fig and a date", "ice age"] * 20


def folder_of(place: Path, state: dict, lang: str = "in") -> Path:
    """A folder with a model that reads letters, each a word."""
    place.mkdir()
    for side in "in", "out":
        shutil.copy(str(STORED / f"dict.{side}.txt"), str(place))
    (place / "bpe.codes").write_text("#version: 0.2\nq q</w>\n")  # a merge of what does not come
    (place / "manifest.json").write_text(manifest_for(lang, "out", "moses-bpe"))
    torch.save(state, str(place / "model.pt"))
    return place


def untrained(settings: dict, state: dict, dictionaries: Path) -> dict:
    """A checkpoint of a model of these settings, with the parameters that a seed makes."""
    from fairseq import checkpoint_utils, tasks
    from omegaconf import OmegaConf

    file = io.BytesIO()
    torch.save({**state, "cfg": {**state["cfg"], "model": settings}}, file)
    (dictionaries / "first.pt").write_bytes(file.getvalue())
    found = checkpoint_utils.load_checkpoint_to_cpu(str(dictionaries / "first.pt"), {"data": str(dictionaries)})
    (dictionaries / "first.pt").unlink()
    cfg = found["cfg"]
    cfg.task.source_lang, cfg.task.target_lang = sorted(
        path.name.split(".")[1] for path in dictionaries.glob("dict.*.txt")
    )
    torch.manual_seed(1)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    plain = OmegaConf.to_container(cfg, enum_to_str=True)
    return {**state, "cfg": plain, "model": model.state_dict()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """Folders of models: two Lunas that were trained, a Transformer that was not, and a Luna with other pieces."""
    base = tmp_path_factory.mktemp("a folder with spaces")
    for name in "untied", "full_cross":
        state = torch.load(str(STORED / f"{name}.pt"), map_location="cpu")
        folder_of(base / name, state)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes.update(encoder_embed_dim=16, encoder_ffn_embed_dim=16, dropout=0, data=str(base), no_save=True)
    transformer = Namespace(arch="transformer", task="translation", **sizes)
    place = folder_of(base / "transformer", {})
    torch.save(untrained(transformer, state, place), str(place / "model.pt"))

    spelt = base / "spelt"
    spelt.mkdir()
    recipe = SentencePiece(spelt, "en", "en2")
    recipe.learn(TEXT, recipe.path, 300)
    for lang in recipe.source, recipe.target:
        (spelt / f"dict.{lang}.txt").write_text("".join(f"{piece} 1\n" for piece in recipe.symbols()), encoding="utf-8")
    (spelt / "manifest.json").write_text(manifest_for("en", "en2"))
    torch.save(untrained(state["cfg"]["model"], state, spelt), str(spelt / "model.pt"))
    return base


@pytest.fixture(scope="module")
def luna(folders) -> Translator:
    return Translator.from_run(folders / "untied", device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def both(folders) -> Translator:
    """A Luna and a Transformer together."""
    return Translator.from_run(folders / "untied", folders / "transformer", device="cpu")


@pytest.fixture(scope="module")
def packed(folders) -> Path:
    packing.pack(folders / "untied", folders / "model.tar.gz")
    return folders / "model.tar.gz"


def close(ours: list, theirs: list) -> None:
    """Equal translations, but for the last digits of their scores."""
    assert [each.text for each in ours] == [each.text for each in theirs]
    assert [each.score for each in ours] == pytest.approx([each.score for each in theirs], abs=1e-5)


# ---- translating


@pytest.mark.stock
def test_translations_are_those_of_fairseq(luna):
    """In the order of their sources; texts, and with details the scores of fairseq's generator."""
    rows = translations("untied")
    assert luna.translate(SOURCES) == [row["translations"][0] for row in rows]
    found = luna.translate(SOURCES, nbest=2, details=True)
    assert [[each.text for each in best] for best in found] == [row["translations"] for row in rows]
    scores = [each.score for best in found for each in best]
    assert scores == pytest.approx([score for row in rows for score in row["scores"]], abs=1e-5)
    assert luna.translate(SOURCES[:2], nbest=2) == [row["translations"] for row in rows[:2]]
    assert found[0][0].pieces == tuple("h e a d g".split()) and found[0][0].source_pieces == tuple("g d a e h".split())


def test_a_stream_is_read_by_windows(luna):
    read = []

    def lines():
        for number in range(10**6):
            read.append(number)
            yield SOURCES[number % 3]

    stream = luna.stream(lines(), buffer=4)
    assert not read
    assert [next(stream) for _ in range(5)] == luna.translate([SOURCES[i % 3] for i in range(5)])
    assert len(read) == 8


@pytest.mark.stock
def test_blank_lines_stay_blank(luna):
    lines = ["", SOURCES[0], " \t ", SOURCES[1], ""]
    assert luna.translate(lines) == ["", *luna.translate([SOURCES[0]]), "", *luna.translate([SOURCES[1]]), ""]
    assert luna.translate(["", " "], details=True) == [Translation(""), Translation("")]
    assert luna.translate([""], nbest=2, attention=True) == [[Translation("")]]
    assert luna.translate([]) == []


def test_an_ensemble_is_the_mean_of_its_models(both, folders):
    """Of the probabilities: those of each model by itself are between."""
    lines, given = SOURCES[:3], ["h e a d g", "i c", "a b i b"]
    alone = [Translator.from_run(folders / name, device="cpu") for name in ("untied", "transformer")]
    for ours, first, second in zip(both.score(lines, given), *(each.score(lines, given) for each in alone)):
        logs = torch.tensor([first.log_probs, second.log_probs], dtype=torch.float64)
        mean = torch.logsumexp(logs, dim=0) - torch.tensor(2.0).log()
        torch.testing.assert_close(torch.tensor(ours.log_probs, dtype=torch.float64), mean, rtol=0, atol=1e-5)
    other = Translator([folders / "transformer", folders / "untied"], device="cpu")
    close(both.translate(lines, details=True), other.translate(lines, details=True))
    assert other.score(lines, given)[0].total == pytest.approx(both.score(lines, given)[0].total, abs=1e-5)


def test_an_ensemble_needs_one_vocabulary(folders, tmp_path):
    other = folder_of(tmp_path / "other", {}, lang="xx")
    with pytest.raises(Problem, match="is of xx-out, but .* of in-out"):
        Translator([folders / "untied", other], device="cpu")
    (other / "manifest.json").write_text(manifest_for("in", "out", "moses-bpe"))
    (other / "bpe.codes").write_text("#version: 0.2\na a</w>\n")
    with pytest.raises(Problem, match="has not the bpe.codes of"):
        Translator([folders / "untied", other], device="cpu")


def test_sampling_draws_by_its_seed_alone(both):
    """Whatever else draws random numbers, which is left as it was."""
    options = {"sampling": True, "nbest": 3, "temperature": 1.5}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    drawn = both.translate(SOURCES[:4], **options)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert both.translate(SOURCES[:4], seed=1, **options) == drawn
    assert both.translate(SOURCES[:4], seed=2, **options) != drawn
    streams = [both.stream(SOURCES[:4], buffer=2, **options) for _ in range(2)]
    first, second = zip(*zip(*streams))
    assert first == second
    greedy = both.translate(SOURCES[:4], beam=1)
    assert both.translate(SOURCES[:4], sampling=True, sampling_topk=1) == greedy
    assert len(both.translate(SOURCES[:4], sampling=True, sampling_topk=10**6)) == 4


def test_threads_draw_one_after_the_other():
    """torch has one random state: nobody may draw from that of another."""
    first, second = (Draws(1, torch.device("cpu")) for _ in range(2))

    def draw() -> list:
        with second.drawn():
            return torch.rand(5).tolist()

    with ThreadPoolExecutor(2) as threads:
        with first.drawn():
            calls = threads.submit(Draws, 2, torch.device("cpu")), threads.submit(draw)
            assert not wait(calls, timeout=0.2).done
            mine = torch.rand(5).tolist()
        assert calls[0].result() and calls[1].result() == mine


@pytest.mark.stock
def test_what_a_translation_must_hold(luna):
    plain = luna.translate(SOURCES[:2])
    lines = [Source(SOURCES[0], ["j", "c"]), SOURCES[1], Source(SOURCES[2], [" "])]
    found = luna.translate(lines)
    assert found[0].index("j") < found[0].index("c") and found[1] == plain[1]
    assert found[2:] == luna.translate(SOURCES[2:3])
    assert luna.translate([SOURCES[0]], prefix="j c")[0].startswith("j c")
    with pytest.raises(Problem, match="sentence 2: the constraint 'z' cannot be forced"):
        luna.translate(["a", Source("a", ["z"])])
    with pytest.raises(Problem, match="line 7 has constraints but no source"):
        luna.translate([Source(" ", ["a"], "line 7")])
    with pytest.raises(Problem, match="constraints and sampling do not go together"):
        luna.translate([Source("a", ["b"])], sampling=True)


@pytest.mark.stock
@pytest.mark.parametrize("name", ["luna", "both"])
def test_attention_and_alignment(name, request):
    """(n + 1, m + 1) with the ends of both; an alignment is where each row is largest, the end left aside."""
    translator = request.getfixturevalue(name)
    lines = ["a", *SOURCES[:4], ""]
    found = translator.translate(lines, attention=True)
    close(found, translator.translate(lines, details=True))
    for each in found[:-1]:
        assert each.attention.shape == (len(each.pieces) + 1, len(each.source_pieces) + 1)
        torch.testing.assert_close(each.attention.sum(dim=1), torch.ones(len(each.attention)))
        largest = each.attention[:-1, :-1].argmax(dim=1).tolist()
        assert each.alignment == [(i, j) for j, i in enumerate(largest)]
    assert found[-1] == Translation("")
    (padded,) = (each for each in found if each.source_pieces == ("a",))
    (single,) = translator.translate(["a"], attention=True)
    torch.testing.assert_close(padded.attention, single.attention, rtol=0, atol=1e-5)
    assert translator.translate(["a"], details=True)[0].attention is None


def test_threads_take_turns(luna):
    want = luna.translate(SOURCES, nbest=2, details=True)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(luna.translate, SOURCES, nbest=2, attention=i % 2 == 1, details=True) for i in range(6)]
        for i, call in enumerate(calls):
            for ours, theirs in zip(call.result(), want):
                close(ours, theirs)
                assert all((each.attention is not None) == (i % 2 == 1) for each in ours)


# ---- scoring


@pytest.mark.stock
@pytest.mark.parametrize("name", ["luna", "both"])
@pytest.mark.parametrize("lenpen", [1.0, 0.6])
def test_a_score_is_that_of_the_search(name, lenpen, request):
    translator = request.getfixturevalue(name)
    lines = [*SOURCES[:6], ""]
    found = translator.translate(lines, nbest=3, details=True, lenpen=lenpen)
    pairs = [(line, each) for line, best in zip(lines, found) for each in best]
    scores = translator.score((line for line, _ in pairs), (each for _, each in pairs), lenpen, buffer=4)
    assert [each.score for each in scores] == pytest.approx([each.score for _, each in pairs], abs=1e-4)
    for each, (_, translation) in zip(scores, pairs):
        assert each.pieces == translation.pieces and each.total == pytest.approx(sum(each.log_probs))
    assert len(scores[0].log_probs) == len(scores[0].pieces) + 1 and scores[-1] == Score()
    texts = translator.score(lines, [best[0].text for best in found], lenpen)
    assert [each.score for each in texts] == pytest.approx([best[0].score for best in found], abs=1e-4)


def test_a_translation_is_scored_in_its_own_pieces(folders):
    """The text by itself is cut as the recipe cuts it; what an untrained model writes seldom is."""
    translator = Translator.from_run(folders / "spelt", device="cpu")
    lines = TEXT[:6]
    found = translator.translate(lines, details=True, max_len_b=5)
    scores = translator.score(lines, found)
    assert [each.score for each in scores] == pytest.approx([each.score for each in found], abs=1e-4)
    assert [each.pieces for each in scores] == [each.pieces for each in found]
    anew = translator.score(lines, [each.text for each in found])
    assert [each.pieces for each in anew] == list(map(tuple, translator.pieces.recipe.encode([e.text for e in found])))


def test_pairs_that_are_none(luna):
    with pytest.raises(Problem, match="there are 2 translations, but more sentences"):
        luna.score(iter(SOURCES[:3]), ["a", "b"])
    with pytest.raises(Problem, match="there are 1 sentences, but more translations"):
        luna.score(SOURCES[:1], ["a", "b"])
    with pytest.raises(Problem, match="sentence 2 is blank, but its translation is not"):
        luna.score(["a", ""], ["a", "b"])
    with pytest.raises(Problem, match="the translation of sentence 1 is no text, but of type NoneType"):
        luna.score(["a"], [None])


# ---- what is refused

REFUSED = {
    "unknown": ({"beams": 3}, "beams is no option of the search; there are beam, lenpen"),
    "nbest": ({"nbest": 6}, "nbest 6 is more than beam 5"),
    "beam": ({"beam": 0}, "beam must be at least 1, but is 0"),
    "buffer": ({"buffer": 0}, "buffer must be at least 1, but is 0"),
    "topk": ({"sampling_topk": 5}, "sampling_topk is for sampling"),
    "topp": ({"sampling": True, "sampling_topp": 2}, "sampling_topp must be above 0 and at most 1, but is 2"),
    "two": ({"sampling": True, "sampling_topk": 1, "sampling_topp": 1}, "do not go together"),
    "temperature": ({"sampling": True, "temperature": 0}, "temperature must be above 0, but is 0"),
    "no sampling": ({"temperature": 0.5}, "temperature 0.5 is for sampling"),
    "text": ({"beam": "5"}, "beam must be a whole number, but is '5'"),
    "half": ({"beam": 2.5}, "beam must be a whole number, but is 2.5"),
    "lenpen": ({"lenpen": "x"}, "lenpen must be a number, but is 'x'"),
    "endless": ({"max_len_a": math.inf}, "max_len_a must be a number, but is inf"),
    "negative": ({"max_len_b": -50}, "max_len_b must be at least 0, but is -50"),
    "no room": ({"max_len_a": 0, "max_len_b": 0}, "leave no room for a translation"),
    "bool": ({"sampling": 1}, "sampling must be True or False, but is 1"),
    "half topk": ({"sampling": True, "sampling_topk": 1.5}, "sampling_topk must be a whole number, but is 1.5"),
    "no prefix": ({"prefix": None}, "prefix must be a text, but is None"),
    "half buffer": ({"buffer": 2.5}, "buffer must be a whole number, but is 2.5"),
    "prefix": ({"prefix": "a z"}, "the prefix 'a z' cannot be forced: the vocabulary lacks z"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_bad_options_are_refused_at_once(luna, options, message):
    with pytest.raises(Problem, match=message):
        luna.stream(SOURCES, **options)


def test_bad_sources_are_refused(luna):
    for one in "a b c", Source("a b c"):
        with pytest.raises(Problem, match="this is one sentence: give a list of sentences"):
            luna.stream(one)
    with pytest.raises(Problem, match="sentence 2 is no text, but of type int"):
        luna.translate(["a", 7])
    with pytest.raises(Problem, match=r"sentence 1 is no text, but of type int"):
        luna.translate([Source(7)])
    for texts in "Datei", ["a", 7]:
        with pytest.raises(Problem, match="the constraints of sentence 1 must be a list of texts, but are .*(Datei|7)"):
            luna.translate([Source("a", constraints=texts)])
    with pytest.raises(Problem, match="lenpen must be a number, but is 'x'"):
        luna.score(["a"], ["a"], lenpen="x")


def test_bad_devices_and_precisions_are_refused(folders):
    def load(name="untied", **options):
        return Translator.from_run(folders / name, **{"device": "cpu", **options})

    with pytest.raises(Problem, match="device 'gpu' is none of torch's"):
        load(device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(Problem, match="device 'cuda:1' is a GPU, but torch finds none here"):
            load(device="cuda:1")
    with pytest.raises(Problem, match="precision 'int4' is unknown; choose from fp32, fp16, bf16, int8"):
        load(precision="int4")
    with pytest.raises(Problem, match="precision fp16 is for a GPU"):
        load(precision="fp16")
    with pytest.raises(Problem, match="batch_size must be at least 1, but is 0"):
        load(batch_size=0)
    with pytest.raises(Problem, match="on a CPU is for Luna models, which that of .*transformer is not"):
        load("transformer", precision="bf16")
    assert load(precision="int8").translate(SOURCES[:2]) == load().translate(SOURCES[:2])


@pytest.mark.stock
def test_tokens_that_share_a_slot(folders, packed, tmp_path):
    """As with a model of that setting; refused where there are no slots, or all are always used."""
    state = torch.load(str(folders / "untied" / "model.pt"), map_location="cpu")
    state["cfg"]["model"]["tokens_per_slot"] = 2.5
    as_trained = Translator.from_run(folder_of(tmp_path / "trained so", state), device="cpu")
    asked = Translator.from_run(folders / "untied", device="cpu", tokens_per_slot=2.5)
    usual = Translator.from_run(folders / "untied", device="cpu")
    found = [each.translate(SOURCES, details=True) for each in (as_trained, asked, usual)]
    assert found[0] == found[1] and [each.score for each in found[1]] != [each.score for each in found[2]]
    # each model of an ensemble, and one out of a file
    (tmp_path / "packed").write_bytes(packed.read_bytes())
    both = Translator([folders / "untied", tmp_path / "packed"], device="cpu", tokens_per_slot=2.5)
    close(both.translate(SOURCES, details=True), found[0])
    state["cfg"]["model"].update(tokens_per_slot=1.0, fix_projection_length=True)
    for place, message in [
        (folder_of(tmp_path / "fixed", state), "fixed was trained with --fix-projection-length"),
        (folders / "transformer", "the model of .*transformer has no slots"),
    ]:
        with pytest.raises(Problem, match=message):
            Translator.from_run(place, device="cpu", tokens_per_slot=2)
    for value, message in [
        (0.5, "must be at least 1, but is 0.5"),
        ("2", "must be a number, but is '2'"),
        (math.nan, "must be a number, but is nan"),
        (10**400, "is too large a number"),
    ]:
        with pytest.raises(Problem, match=f"tokens_per_slot {message}"):
            Translator.from_run(folders / "untied", device="cpu", tokens_per_slot=value)


def test_a_folder_that_is_no_model(folders, tmp_path):
    with pytest.raises(Problem, match="holds no model .*model.pt is missing"):
        Translator.from_run(tmp_path)
    other = folder_of(tmp_path / "other", {"nothing": "of a model"})
    with pytest.raises(Problem, match="the model of .*other cannot be loaded"):
        Translator.from_run(other, device="cpu")
    content = (folders / "untied" / "model.pt").read_bytes()
    (other / "model.pt").write_bytes(content[:-200] + bytes(100) + content[-100:])
    with pytest.raises(Problem, match="the model of .*other cannot be loaded"):
        Translator(str(other), device="cpu")  # one place may come without a list
    with pytest.raises(Problem, match="model.pt cannot be handed on"):
        packing.pack(other, tmp_path / "model.tar.gz")
    (other / "bpe.codes").write_text("#version: 0.2\na b c d\n")
    with pytest.raises(Problem, match="bpe.codes is damaged or holds no merges"):
        Translator.from_run(other, device="cpu")
    (other / "manifest.json").unlink()
    with pytest.raises(Problem, match='does not tell its languages: write .*"source": "en"'):
        Translator.from_run(other)


def test_embeddings_that_a_training_began_with_are_not_read(folders, tmp_path):
    state = torch.load(str(folders / "untied" / "model.pt"), map_location="cpu")
    state["cfg"]["model"]["encoder_embed_path"] = str(tmp_path / "nowhere")
    run = folder_of(tmp_path / "run", state)
    want = Translator.from_run(folders / "untied", device="cpu").translate(SOURCES[:2])
    assert Translator.from_run(run, device="cpu").translate(SOURCES[:2]) == want
    packing.pack(run, tmp_path / "model.tar.gz")
    assert Translator.from_file(tmp_path / "model.tar.gz", device="cpu").translate(SOURCES[:2]) == want


def test_what_linformer_does_not_reach_is_cut(folders, tmp_path, caplog):
    """Its sums end at so many positions, even where those are sinusoids."""
    state = torch.load(str(folders / "untied" / "model.pt"), map_location="cpu")
    place = folder_of(tmp_path / "linformer", {})
    settings = {**state["cfg"]["model"], "encoder_self_attention": "linformer", "max_source_positions": 8}
    torch.save(untrained(settings, state, place), str(place / "model.pt"))
    translator = Translator.from_run(place, device="cpu")
    long = "a b c d e f g h i j"
    assert translator.translate([long]) == translator.translate([" ".join(long.split()[:7])])
    (record,) = caplog.records
    assert "has 11 pieces: only the first 8 are translated" in record.getMessage()


# ---- a model in a file


@pytest.mark.stock
@pytest.mark.parametrize("name", ["untied", "transformer", "spelt"])
def test_a_packed_model_translates_as_before(folders, tmp_path, monkeypatch, name):
    """From wherever it lies, with nothing left behind, and by fairseq once unpacked."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    lines = TEXT[:4] if name == "spelt" else SOURCES[:4]
    manifest = packing.pack(folders / name, tmp_path / "deep" / "model.tar.gz")
    assert os.listdir(str(tmp_path / "deep")) == ["model.tar.gz"]
    translator = Translator.from_file(tmp_path / "deep" / "model.tar.gz", device="cpu")
    assert not os.listdir(str(tmp_path / "temporary"))
    want = Translator.from_run(folders / name, device="cpu").translate(lines, details=True)
    assert translator.translate(lines, details=True) == want

    with tarfile.open(str(tmp_path / "deep" / "model.tar.gz")) as archive:
        assert archive.getnames() == ["manifest.json", *manifest["files"]]
        archive.extractall(str(tmp_path / "unpacked"))
    assert Translator.from_run(tmp_path / "unpacked", device="cpu").translate(lines, details=True) == want
    state = torch.load(str(tmp_path / "unpacked" / "model.pt"), map_location="cpu")
    assert not {"last_optimizer_state", "criterion"} & set(state) and str(folders) not in str(state["cfg"])

    from fairseq.hub_utils import GeneratorHubInterface, from_pretrained

    loaded = from_pretrained(str(tmp_path / "unpacked"), "model.pt")
    hub = GeneratorHubInterface(loaded["args"], loaded["task"], loaded["models"])
    tokens = [hub.binarize(" ".join(each.source_pieces)) for each in want]
    found = hub.generate(tokens, beam=5, max_len_a=1.5, max_len_b=10)
    assert [hub.string(best[0]["tokens"]) for best in found] == [" ".join(each.pieces) for each in want]


def test_the_commands_take_it(folders, luna, tmp_path, monkeypatch, capfdbinary):
    """pack.sh makes it, translate.sh reads it, and says what Translator says."""

    def call(script, *words):
        monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
        script.main()
        return capfdbinary.readouterr().out.decode()

    from luna_tools.evaluation import pack, translate

    said = call(pack, folders / "untied", "--out", tmp_path / "model.tar.gz")
    assert said.endswith("model.tar.gz: luna_transformer, in-out, 0.1 MB\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"g d a e h\n\nc i\n")))
    found = call(translate, "--cpu", "--beam", 2, "--nbest", 2, "--model", tmp_path / "model.tar.gz")
    want = luna.translate(["g d a e h", "", "c i"], beam=2, nbest=2, details=True)
    rows = [
        f"{number}\t{each.score / math.log(2):.4f}\t{each.text}\n"
        for number, best in enumerate(want, 1)
        for each in best
    ]
    assert found == "".join(rows)


def test_the_same_model_makes_the_same_file(folders, packed, tmp_path):
    packing.pack(folders / "untied", tmp_path / "again.tar.gz")
    assert (tmp_path / "again.tar.gz").read_bytes() == packed.read_bytes()


def test_a_file_of_others_is_not_written_over(folders, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(Problem, match="mine is there, and is no packed model"):
        packing.pack(folders / "untied", tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "ours.files").mkdir()
    (tmp_path / "ours.files" / "mine").write_text("mine")
    for _ in range(2):
        packing.pack(folders / "untied", tmp_path / "ours")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "mine", "ours", "ours.files"]
    with pytest.raises(Problem, match="ours.files is a folder: choose a file"):
        packing.pack(folders / "untied", tmp_path / "ours.files")
    assert (tmp_path / "ours.files" / "mine").exists()


def test_an_error_leaves_nothing_half_written(tmp_path):
    for _ in range(2):
        with pytest.raises(OSError, match="full"), whole(tmp_path / "out") as beside:
            beside.write_text("half")
            raise OSError("full")
        assert not list(tmp_path.iterdir())


class Harmful:
    """Loaded by pickle, it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = str(place)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.place,)


def rewritten(packed: Path, place: Path, change) -> Path:
    """A packed model with other members; `change` gets a list of pairs (TarInfo, content), and gives another."""
    with tarfile.open(str(packed)) as archive:
        found = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(str(place), "w:gz") as archive:
        for member, content in change(found):
            if member.isreg():
                member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return place


def renamed(number: int, name: str):
    def change(found):
        found[number][0].name = name
        return found

    return change


def sparse(found):
    """In the way of pax, which has the type of an ordinary file."""
    found[2][0].pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "104", "GNU.sparse.numblocks": "1"}
    return found


def retyped(number: int, kind: bytes):
    def change(found):
        found[number][0].type, found[number][0].linkname = kind, "/etc/passwd"
        return found

    return change


def told(**changes):
    """Another manifest."""

    def change(found):
        (member, content), *others = found
        return [(member, json.dumps({**json.loads(content), **changes}).encode()), *others]

    return change


def with_content(name: str, content: bytes, honest: bool = True):
    """Another member, of which the manifest tells if it is honest."""

    def change(found):
        found = [(member, content if member.name == name else old) for member, old in found]
        manifest = json.loads(found[0][1])
        if honest:
            manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        return [(found[0][0], json.dumps(manifest).encode()), *found[1:]]

    return change


SETTINGS = {"source": "in", "target": "out", "recipe": "moses-bpe"}
HOSTILE = {
    "absolute": (renamed(2, "/tmp/dict.in.txt"), "its member '/tmp/dict.in.txt' is not the one of its manifest"),
    "upwards": (renamed(2, "../dict.in.txt"), "its member '../dict.in.txt' is not the one"),
    "link": (retyped(1, tarfile.SYMTYPE), "its member 'model.pt' is not the one"),
    "sparse": (sparse, "its member 'dict.in.txt' is not the one"),
    "hard link": (retyped(2, tarfile.LNKTYPE), "its member 'dict.in.txt' is not the one"),
    "device": (retyped(1, tarfile.CHRTYPE), "its member 'model.pt' is not the one"),
    "twice": (lambda found: [*found, found[2]], "its member 'dict.in.txt' is not the one"),
    "missing": (lambda found: found[:-1], "it lacks bpe.codes"),
    "no manifest": (lambda found: found[1:], "it does not begin with manifest.json"),
    "empty": (lambda found: [], "it does not begin with manifest.json"),
    "no json": (lambda found: [(found[0][0], b"{"), *found[1:]], "its manifest.json lacks something"),
    "too deep": (lambda found: [(found[0][0], b"[" * 100_000), *found[1:]], "its manifest.json lacks something"),
    "other format": (told(format="of others"), "its format is 'of others'"),
    "later": (told(version=2), "is of version 2 of the format, but this is for 1: update fairseq_luna"),
    "no files": (told(files=[]), "its manifest.json lacks something"),
    "other files": (told(files={"x": {"sha256": "", "bytes": 1}}), "names other files than those of a model"),
    "fewer than none": (
        told(
            files={
                name: {"sha256": "", "bytes": -1} for name in ("model.pt", "dict.in.txt", "dict.out.txt", "bpe.codes")
            }
        ),
        "names other files than those of a model",
    ),
    "codes": (with_content("bpe.codes", b"#version: 0.2\na b c d\n"), "bpe.codes is damaged or holds no merges"),
    "language": (told(settings={**SETTINGS, "source": "../x"}), "names other files than those of a model"),
    "recipe": (told(settings={**SETTINGS, "recipe": ["x"]}), "lacks something|names other files"),
    "damaged": (with_content("dict.in.txt", b"x" * 104, honest=False), "its dict.in.txt is damaged"),
    "longer": (with_content("dict.in.txt", b"x" * 105, honest=False), "'dict.in.txt' is not the one"),
    "no checkpoint": (with_content("model.pt", b"x" * 104), "of its model.pt, it is not a whole checkpoint"),
}


@pytest.fixture
def refused(packed, tmp_path, monkeypatch):
    """Asks for a file that is made of a packed one, which must fail and leave nothing behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    def check(bad: Path, message: str) -> None:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(Problem, match=message) as found:
            Translator.from_file(bad, device="cpu")
        assert str(bad) in str(found.value) and sorted(tmp_path.rglob("*")) == before

    return check


@pytest.mark.stock
@pytest.mark.parametrize("change, message", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused(packed, tmp_path, refused, change, message):
    refused(rewritten(packed, tmp_path / "bad.tar.gz", change), message)


def harmful_checkpoint(place: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"model": {}, "cfg": Harmful(place)}, file)
    return file.getvalue()


@pytest.mark.stock
def test_a_checkpoint_that_runs_code_is_refused(packed, tmp_path, refused):
    made = tmp_path / "made"
    bad = rewritten(packed, tmp_path / "bad.tar.gz", with_content("model.pt", harmful_checkpoint(made)))
    refused(bad, r"it holds (posix|os)\.mkdir")
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), script)
    refused(rewritten(packed, tmp_path / "bad2.tar.gz", with_content("model.pt", script.getvalue())), "TorchScript")
    assert not made.exists()


CODE = "__import__('pathlib').Path({!r}).write_text('x')"
LUNA = {"_name": "luna_transformer"}
SETTINGS_THAT_RUN = {
    "fconv": (Namespace(arch="fconv", encoder_layers=CODE), {}, "its model is 'fconv', but only a Luna"),
    "align": (Namespace(arch="transformer_align"), {}, "its model is 'transformer_align', but only a Luna"),
    "two": (Namespace(arch="fconv", _name="transformer"), {}, "its model is 'fconv' or 'transformer'"),
    "none": ({}, {}, "but only a Luna"),
    "no settings": (None, {}, "it lacks settings"),
    "cutoff": (Namespace(arch="transformer", adaptive_softmax_cutoff=CODE), {}, "setting adaptive_softmax_cutoff is"),
    "attention": (
        Namespace(arch="transformer", encoder_xformers_att_config=CODE),
        {},
        "encoder_xformers_att_config is",
    ),
    "path": (Namespace(arch="transformer", encoder_embed_path="/etc/passwd"), {}, "setting encoder_embed_path is"),
    "nested": (Namespace(arch="transformer", encoder={"layers": CODE}), {}, "a setting 'encoder', which is unknown"),
    "short": (Namespace(arch="transformer", embed_path="/etc/passwd"), {}, "a setting 'embed_path', which is unknown"),
    "luna": ({**LUNA, "encoder_layers_to_keep": CODE}, {}, "setting encoder_layers_to_keep is"),
    "list": ({**LUNA, "adaptive_softmax_cutoff": [CODE]}, {}, "setting adaptive_softmax_cutoff is"),
    "other": ({**LUNA, "encoder_layers": "${oc.env:HOME}"}, {}, "setting encoder_layers is"),
    "task": (LUNA, {"_name": "multilingual_translation", "left_pad_source": CODE}, "its task is 'multilingual_trans"),
    "padding": (LUNA, {"left_pad_source": CODE}, "setting left_pad_source is"),
    "bleu": (LUNA, {"eval_bleu": True}, "it asks for BLEU"),
    "data": (LUNA, {"data": "${oc.env:HOME}"}, "its data is"),
}


@pytest.mark.stock
@pytest.mark.parametrize("model, task, message", SETTINGS_THAT_RUN.values(), ids=SETTINGS_THAT_RUN)
def test_settings_that_run_code_are_refused(packed, tmp_path, refused, model, task, message):
    """fairseq takes some texts in settings for Python."""
    code = CODE.format(str(tmp_path / "made"))
    with tarfile.open(str(packed)) as archive:
        state = torch.load(io.BytesIO(archive.extractfile("model.pt").read()), map_location="cpu")
    settings = vars(model) if isinstance(model, Namespace) else model
    filled = settings and {name: code if value is CODE else value for name, value in settings.items()}
    task = {name: code if value is CODE else value for name, value in task.items()}
    state["cfg"]["model"] = Namespace(**filled) if isinstance(model, Namespace) else filled
    state["cfg"]["task"].update(task)
    file = io.BytesIO()
    torch.save(state, file)
    refused(rewritten(packed, tmp_path / "bad.tar.gz", with_content("model.pt", file.getvalue())), message)
    assert not (tmp_path / "made").exists()


@pytest.mark.stock
def test_damage_of_any_kind_is_told_as_such(packed, folders, tmp_path, refused):
    content = (folders / "untied" / "model.pt").read_bytes()
    for number, damaged in enumerate(
        (content[:40] + bytes(60) + content[100:], content[:-200] + bytes(178) + content[-22:])
    ):
        bad = tmp_path / f"bad{number}.tar.gz"
        refused(rewritten(packed, bad, with_content("model.pt", damaged)), "of its model.pt, it is")


@pytest.mark.stock
def test_a_file_that_is_cut_short_is_refused(packed, tmp_path, refused):
    content = packed.read_bytes()
    for length in 0, 10, 300, len(content) // 2, len(content) - 200:
        (tmp_path / "cut.tar.gz").write_bytes(content[:length])
        refused(tmp_path / "cut.tar.gz", "is no whole packed model")
    (tmp_path / "cut.tar.gz").write_text("something else")
    refused(tmp_path / "cut.tar.gz", "is no whole packed model")
    with pytest.raises(Problem, match="there is no file .*nowhere"):
        Translator.from_file(tmp_path / "nowhere")


def test_damaged_bytes_are_never_taken(packed, tmp_path, refused):
    """Any byte of the archive itself, before it is zipped."""
    content = bytearray(gzip.decompress(packed.read_bytes()))
    chance = random.Random(1)
    for _ in range(10):
        damaged = bytearray(content)
        damaged[chance.randrange(6000, 100_000)] ^= 64
        (tmp_path / "bad.tar.gz").write_bytes(gzip.compress(bytes(damaged), 1))
        refused(tmp_path / "bad.tar.gz", "is damaged|is no whole")


@pytest.mark.stock
def test_a_header_of_many_bytes_is_refused(tmp_path, refused):
    """A few bytes say that a header of gigabytes follows: it is not read."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 32
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(gzip.compress(header.tobuf(tarfile.USTAR_FORMAT) + bytes(1 << 12)))
    refused(bad, "it asks for 4,294,967,296 bytes at once")


@pytest.mark.stock
def test_the_check_of_checkpoints_for_older_versions_of_torch(folders, tmp_path):
    """It takes what fairseq writes, with settings in a Namespace, and nothing else."""
    from fairseq_luna.compat import loading

    options = {"map_location": "cpu", "pickle_module": loading.restricted_pickle()}
    if "weights_only" in loading.parameters(torch.load):
        options["weights_only"] = False
    state = torch.load(str(folders / "transformer" / "model.pt"), **options)
    assert isinstance(state["cfg"]["model"], Namespace) and state["model"]
    (tmp_path / "bad.pt").write_bytes(harmful_checkpoint(tmp_path / "made"))
    with pytest.raises(pickle.UnpicklingError, match=r"it holds (posix|os)\.mkdir"):
        torch.load(str(tmp_path / "bad.pt"), **options)
    assert not (tmp_path / "made").exists()
    changed = b"cargparse\nNamespace\n(N(dS'encoder_layers'\nS'code'\nstb."
    with pytest.raises(pickle.UnpicklingError, match="it changes a class"):
        loading.restricted_pickle().Unpickler(io.BytesIO(changed)).load()
    assert not hasattr(Namespace, "encoder_layers")


# ---- the package without the checkout


def test_it_needs_no_scripts(folders, packed, tmp_path):
    """In another folder with the package only; importing it alone prints nothing and brings no Translator."""
    shutil.copytree(str(ROOT / "fairseq_luna"), str(tmp_path / "site" / "fairseq_luna"))
    code = (
        "import sys, fairseq_luna\n"
        "assert not [name for name in sys.modules if name.startswith('fairseq_luna.generation')]\n"
        "assert 'sentencepiece' not in sys.modules and 'sacremoses' not in sys.modules\n"
        f"found = fairseq_luna.Translator.from_file({str(packed)!r}, device='cpu').translate(['g d a e h'])\n"
        "assert fairseq_luna.__file__.startswith(sys.argv[1]) and 'sentencepiece' not in sys.modules\n"
        "print(*found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "site")],
        env={**ENV, "PYTHONPATH": str(tmp_path / "site")},
        cwd=str(tmp_path),
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.stdout, done.stderr, done.returncode) == ("h e a d g\n", "", 0)


@pytest.mark.parametrize("name", ["README.md", "docs/translating.md"])
def test_the_python_of_the_guides_runs(folders, tmp_path, monkeypatch, capsys, name):
    """With a model that knows the letters of English, from wherever its folder is called runs/quickstart."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(folders / "spelt")
    (tmp_path / "model").symlink_to(folders / "spelt")
    (tmp_path / "text.en").write_text("a big dog\n\nice age\n")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    exec("\n".join(blocks), {"__name__": "a guide"})
    assert len(capsys.readouterr().out.splitlines()) >= len(blocks)
