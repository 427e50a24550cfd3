"""Models as ONNX: that they translate as in torch, without torch; what is damaged or cannot be exported is refused."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ENV, ROOT, call
from fairseq.modules import SinusoidalPositionalEmbedding
from test_stored import PINNED, STORED
from test_translator import folder_of
from tiny import EOS, LINFORMER, PAD, UNTIED, VARIANTS, build, each, sentences, sharpen, targets

import fairseq_luna
from fairseq_luna.errors import Problem
from fairseq_luna.export.folder import export
from fairseq_luna.export.graphs import Sinusoids
from fairseq_luna.export.tracing import check, check_torch, graphs_of, prepare
from fairseq_luna.generation.options import Search
from fairseq_luna.generation.places import manifest_for
from fairseq_luna.onnx import Translator
from fairseq_luna.onnx.model import Model
from fairseq_luna.text.recipes import SentencePiece

NAMES = "untied", "full_cross"
names = pytest.mark.parametrize("name", each({name: name for name in NAMES}, NAMES[:1]))
needs_onnx = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="the extra `export` is not installed"
)
# q and ß are no letters of the models
SOURCES = [row["source"] for row in PINNED["untied"]] + ["a", "q", "d q ß a", "j i h g f e d c b a", "a b c", "e e"]
LONG = " ".join("abcdefghij"[i * i % 10] for i in range(1100))
TEXT = ["a big dog", "he did a bad thing", "big egg", "deaf bee", "a fig and a date", "ice age", "ß"] * 20


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Folders of trained models.

    Of the first the second layer of the decoder is left out, which takes seconds to export. The second has pieces of
    sentencepiece in place of letters, so it writes nonsense.
    """
    base = tmp_path_factory.mktemp("a folder with spaces")
    for name in NAMES:
        state = torch.load(str(STORED / f"{name}.pt"), map_location="cpu")
        if name == NAMES[0]:
            state["cfg"]["model"]["decoder_layers"] = 1
            second = "decoder.layers.1.", "encoder.memory.layers.1."
            state["model"] = {key: x for key, x in state["model"].items() if not key.startswith(second)}
        folder_of(base / name, state)
    folder = base / "full_cross"
    recipe = SentencePiece(folder, "in", "out")
    recipe.learn(TEXT, recipe.path, 300)
    lines = len((folder / "dict.in.txt").read_text().splitlines())
    pieces = [piece for piece in recipe.symbols() if not piece.startswith("<0x")][:lines]
    assert len(pieces) == lines
    for lang in "in", "out":
        (folder / f"dict.{lang}.txt").write_text("".join(f"{piece} 1\n" for piece in pieces), encoding="utf-8")
    (folder / "manifest.json").write_text(manifest_for("in", "out"))
    return base


class Made(dict):
    """What a function makes of a name, made when it is first asked for: an export takes a quarter of a minute."""

    def __init__(self, make) -> None:
        self.make = make

    def __missing__(self, name):
        self[name] = self.make(name)
        return self[name]


@pytest.fixture(scope="module")
def exported(runs) -> Made:
    """By name a model as ONNX: the first one by the script, the other one by the function that it calls."""

    def make(name: str) -> Path:
        run, out = runs / name, runs / "as onnx" / name
        if name == NAMES[0]:
            said = call("luna_tools.evaluation.export", "--model", run, "--out", out)
            assert said.startswith(f"export: wrote {out}: luna_transformer, in-out, fp32, ")
        else:
            export(run, out)
        return out

    return Made(make)


@pytest.fixture(scope="module")
def translators(runs, exported) -> Made:
    """By name a model with ONNX and the same in torch."""
    return Made(
        lambda name: (
            Translator(exported[name]),
            fairseq_luna.Translator(runs / name, device="cpu", precision="fp32"),
        )
    )


def lines_for(name: str) -> list:
    return SOURCES if name == "untied" else [*TEXT[:7], "a dog he did", "qqq", "bad bad big " * 5]


@needs_onnx
@names
@pytest.mark.parametrize(
    "search",
    [
        {"nbest": 5},
        {"beam": 1},
        {"beam": 3, "nbest": 2, "lenpen": 0.4},
        {"max_len_a": 0.0, "max_len_b": 3, "nbest": 5},  # where hypotheses end for want of room
        {"beam": 100, "nbest": 20},  # more than there are words
    ],
    ids=str,
)
def test_hypotheses_are_those_of_torch(translators, name, search):
    """All of each sentence, in their order, with their scores; letters that the model does not know are among them."""
    ours, theirs = (each.translate(lines_for(name), details=True, **search) for each in translators[name])
    if search.get("nbest", 1) > 1:
        ours, theirs = ([one for best in found for one in best] for found in (ours, theirs))
    assert [each._replace(score=0.0) for each in ours] == [each._replace(score=0.0) for each in theirs]
    assert [each.score for each in ours] == pytest.approx([each.score for each in theirs], abs=1e-4)
    assert len({each.text for each in ours}) > 5


@needs_onnx
@names
def test_a_translation_does_not_depend_on_its_batch(translators, exported, name):
    lines, alone = lines_for(name), Translator(exported[name], batch_size=1, threads=1)
    options = {"max_len_a": 0.0, "max_len_b": 12, "details": True}
    ours, theirs = (each.translate(lines, **options) for each in (alone, translators[name][0]))
    assert [each.pieces for each in ours] == [each.pieces for each in theirs]
    assert [each.score for each in ours] == pytest.approx([each.score for each in theirs], abs=1e-5)


@needs_onnx
def test_a_long_source(translators):
    """A sentence has no greatest length where positions are not learned."""
    ours, theirs = (each.translate([LONG], beam=1, details=True) for each in translators["untied"])
    assert ours[0].pieces == theirs[0].pieces and len(ours[0].source_pieces) == 1100


@pytest.mark.stock
def test_positions_are_those_of_fairseq():
    """Beyond the table, too, that fairseq begins with, and wherever padding is."""
    for dim in 6, 7:
        theirs = SinusoidalPositionalEmbedding(dim, PAD, init_size=4)
        ours, tokens = Sinusoids(theirs), torch.full((3, 3000), EOS)
        tokens[1, :7] = tokens[2, 5:] = PAD
        torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=0, atol=0)
        torch.testing.assert_close(ours.at(torch.tensor([2999])), theirs(tokens)[0, 2998:2999], rtol=0, atol=0)


@needs_onnx
def test_lines_stay_in_their_order_and_blank_ones_blank(translators):
    ours, theirs = translators["untied"]
    lines = ["", *SOURCES[:3], " \t ", *SOURCES[3:]]
    found = ours.translate(lines)
    assert found == theirs.translate(lines) and found[0] == found[4] == ""
    assert ours.translate(["", " "], nbest=2) == [[""], [""]] and ours.translate([]) == []
    read = []
    stream = ours.stream((read.append(line) or line for line in lines), buffer=2)
    assert [next(stream) for _ in range(3)] == ours.translate(lines[:3]) and len(read) == 4


@needs_onnx
def test_options_that_make_no_sense_are_refused(translators):
    ours, _ = translators["untied"]
    for options, said in [
        ({"prefix": "a"}, "prefix is no option of the search with ONNX; there are beam, lenpen"),
        ({"nbest": 6}, "nbest 6 is more than beam 5"),
        ({"beam": "5"}, "beam must be a whole number, but is '5'"),
        ({"buffer": 0}, "buffer must be at least 1"),
    ]:
        with pytest.raises(Problem, match=said):
            ours.translate(["a"], **options)


# ---- the command


def command(*words, text=None, path=ROOT) -> subprocess.CompletedProcess:
    """`python -m fairseq_luna.onnx` of an interpreter that has imported nothing yet."""
    return subprocess.run(
        [sys.executable, "-m", "fairseq_luna.onnx", *map(str, words)],
        env={**ENV, "PYTHONPATH": str(path)},
        input=text,
        capture_output=True,
        encoding="utf-8",
    )


@needs_onnx
@names
def test_the_command_imports_neither_torch_nor_fairseq(translators, exported, tmp_path, name):
    for banned in "torch", "fairseq", "fairseq_cli", "omegaconf", "hydra", "onnx", "onnxscript":
        (tmp_path / f"{banned}.py").write_text(f"raise SystemExit('{banned} was imported')\n")
    lines = ["", *lines_for(name)]
    done = command(exported[name], text="".join(line + "\n" for line in lines), path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == [*translators[name][1].translate(lines), ""]


@needs_onnx
def test_what_the_command_writes_is_what_translate_sh_writes(runs, exported, tmp_path):
    (tmp_path / "a text").write_text("".join(line + "\n" for line in SOURCES[:6]), encoding="utf-8")
    options = ["--nbest", 3, "--beam", 4, "--lenpen", 0.7, tmp_path / "a text"]
    done = command(exported["untied"], *options)
    theirs = call("luna_tools.evaluation.translate", "--cpu", "--model", runs / "untied", *options)
    rows = [[row.split("\t") for row in text.splitlines()] for text in (done.stdout, theirs)]
    assert len(rows[0]) == 18 and [row[::2] for row in rows[0]] == [row[::2] for row in rows[1]]
    assert [float(row[1]) for row in rows[0]] == pytest.approx([float(row[1]) for row in rows[1]], abs=1e-3)


@needs_onnx
@pytest.mark.parametrize(
    "words, said",
    [
        (["no folder"], "onnx: no folder holds no exported model (no folder/manifest.json is missing): "),
        (["DIR", "no file"], "onnx: there is no file no file"),
        (["DIR", "--nbest", "7"], "onnx: nbest 7 is more than beam 5, the most that a search finds: raise beam"),
    ],
)
def test_the_command_ends_with_a_sentence(exported, words, said):
    done = command(*(exported["untied"] if word == "DIR" else word for word in words), text="")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


@pytest.mark.stock
def test_the_command_without_onnxruntime(tmp_path):
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('No module named onnxruntime')\n")
    place = folder_of(tmp_path / "model", {})
    (place / "model.pt").unlink()
    for graph in "encode", "step":
        (place / f"{graph}.onnx").write_text(graph)
    about = {"format": "fairseq_luna ONNX model", "version": 1, "search": {}}
    about["limits"] = dict.fromkeys(("source", "target"))
    about["graphs"] = dict.fromkeys(("encode", "step"), {"inputs": [], "outputs": []})
    about["settings"] = json.loads((place / "manifest.json").read_text())["settings"]
    describe(place, about)
    done = command(place, text="", path=f"{tmp_path}{os.pathsep}{ROOT}")
    assert done.returncode == 1
    assert done.stderr == "onnx: No module named onnxruntime: pip install onnxruntime numpy sentencepiece\n"


# ---- damaged folders


def describe(folder: Path, about: dict) -> None:
    """Write a manifest that tells what lies in the folder."""
    about["files"] = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps(about), encoding="utf-8")


@pytest.fixture
def copy(exported, tmp_path) -> Path:
    return Path(shutil.copytree(str(exported["untied"]), str(tmp_path / "a copy")))


def change(folder: Path, **values) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def alter(folder: Path, part: str, key: str, value) -> None:
    told = json.loads((folder / "manifest.json").read_text())[part]
    change(folder, **{part: {**told, key: value}})


def cut(folder: Path) -> None:
    path = folder / "step.onnx"
    path.write_bytes(path.read_bytes()[:-1000])


def cut_unnoticed(folder: Path) -> None:
    cut(folder)
    describe(folder, json.loads((folder / "manifest.json").read_text()))


def garble(folder: Path) -> None:
    path = folder / "encode.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@needs_onnx
@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda copy: (copy / "manifest.json").unlink(), "holds no exported model .*manifest.json is missing"),
        (lambda copy: (copy / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda copy: (copy / "manifest.json").write_text("[" * 100_000), "manifest.json is damaged"),
        (lambda copy: alter(copy, "files", "step.onnx", {"sha256": "", "bytes": "12"}), "does not describe"),
        (lambda copy: alter(copy, "graphs", "encode", {"inputs": [{}], "outputs": []}), "does not describe"),
        (lambda copy: change(copy, format="a zoo"), "holds no exported model, but a 'a zoo'"),
        (lambda copy: change(copy, version=2), "is of version 2 of the format, .* reads version 1: export the model"),
        (lambda copy: change(copy, graphs=None), "does not describe an exported model"),
        (lambda copy: change(copy, files={}), "does not describe an exported model"),
        (lambda copy: (copy / "bpe.codes").unlink(), "bpe.codes is missing: copy the whole folder again"),
        (cut, r"step.onnx has [\d,]+ bytes in place of [\d,]+: copy"),
        (garble, r"encode.onnx is damaged \(another SHA-256\): copy"),
        (cut_unnoticed, r"step.onnx cannot be loaded by onnxruntime .*: export the model again"),
    ],
)
def test_a_damaged_folder_is_refused(copy, damage, said):
    damage(copy)
    with pytest.raises(Problem, match=said):
        Translator(copy)


def test_no_number_is_no_candidate():
    """As for fairseq: a hypothesis goes on by numbers only, and where there are none the translation is blank."""
    from fairseq_luna.onnx.search import beam_search

    class Broken:
        """Of two sentences, whose second one has no numbers."""

        def encode(self, tokens):
            return {}

        def begin(self, memory):
            return {}

        def step(self, tokens, order, t, memory, states):
            rows, beams = tokens.shape
            log_probs = np.full((rows, beams, 7), np.nan, np.float32)
            if rows == 2:
                log_probs[0] = np.log(np.float32([0.1, 0.1, 0.5, 0.1, 0.1, 0.05, 0.05]))
            return log_probs, states

    found = beam_search(Broken(), np.zeros((2, 3), np.int64), Search.of({"beam": 1, "max_len_b": 4}), None)
    assert found[0] and found[0][0].score < 0 and found[1] == []


# ---- what is written


@needs_onnx
@names
def test_the_manifest_tells_how_the_graphs_are_called(exported, name):
    """By somebody who has only onnxruntime: names, types and sizes of what goes in and comes out."""
    import onnxruntime

    about = json.loads((exported[name] / "manifest.json").read_text())
    types = {"int64": "tensor(int64)", "float32": "tensor(float)", "bool": "tensor(bool)"}
    for graph, told in about["graphs"].items():
        session = onnxruntime.InferenceSession(str(exported[name] / f"{graph}.onnx"))
        for side, found in ("inputs", session.get_inputs()), ("outputs", session.get_outputs()):
            assert [(each["name"], each["shape"], types[each["dtype"]]) for each in told[side]] == [
                (each.name, each.shape, each.type) for each in found
            ]
    assert about["search"] == {"beam": 5, "lenpen": 1.0, "nbest": 1, "max_len_a": 1.5, "max_len_b": 10}
    assert about["cross_attention"] == {"untied": "packed", "full_cross": "softmax"}[name]
    assert about["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


@needs_onnx
def test_the_graphs_are_called_as_the_guide_says(translators, exported, monkeypatch, capsys):
    """Its code runs, and finds what greedy search finds."""
    guide = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    code, ours = re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S)[-1], translators["untied"][0]
    monkeypatch.chdir(exported["untied"].parent)
    numbers = str(ours.source.encode(SOURCES[0].split()))
    exec(code.replace("model/", "untied/").replace("[17, 25, 9, 2]", numbers), {})
    found = tuple(ours.target.pieces[int(number)] for number in capsys.readouterr().out.split())
    assert found == ours.translate([SOURCES[0]], beam=1, details=True)[0].pieces


@needs_onnx
def test_no_path_of_this_machine_is_written(exported):
    folder = exported["untied"]
    for path in folder.iterdir():
        assert not any(str(place).encode() in path.read_bytes() for place in (ROOT, folder))


@needs_onnx
def test_int8_is_smaller_and_near(copy, exported):
    import onnx

    from fairseq_luna.export.precision import save

    for graph in "encode", "step":
        save(onnx.load(str(copy / f"{graph}.onnx")), copy / f"{graph}.onnx", "int8")
        assert (copy / f"{graph}.onnx").stat().st_size < (exported["untied"] / f"{graph}.onnx").stat().st_size
        kinds = {node.op_type for node in onnx.load(str(copy / f"{graph}.onnx")).graph.node}
        assert "MatMulInteger" in kinds
    describe(copy, json.loads((copy / "manifest.json").read_text()))
    ours, theirs = (Translator(each).translate(SOURCES, details=True) for each in (copy, exported["untied"]))
    near = sum(mine.text == other.text for mine, other in zip(ours, theirs))
    assert near > len(SOURCES) / 2 and [each.score for each in ours] != [each.score for each in theirs]


@needs_onnx
def test_only_a_folder_of_its_own_kind_is_replaced(runs, exported, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(Problem, match="mine is there, and is no exported model: choose another --out"):
        export(runs / "untied", mine)
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]


ONE_LAYER = {"encoder_layers": 1, "decoder_layers": 1}
OTHERS = {
    "softmax": {
        **{"encoder_self_attention": "softmax", "encoder_learned_pos": True, "decoder_learned_pos": True},
        **{"adaptive_softmax_cutoff": [12, 30], "share_all_embeddings": False},
    },
    "linformer": {
        **{**LINFORMER, **VARIANTS["two-dims"], "layernorm_embedding": True, "causal_activation": "elu"},
        **{"projection_length": 1, "fix_projection_length": True},
    },
    "slots": {**VARIANTS["shared-slots"], "no_token_positional_embeddings": True},
    "two-layers": {**UNTIED, "encoder_layers": 2, "decoder_layers": 2},
}


@needs_onnx
@pytest.mark.release
@pytest.mark.parametrize("settings", OTHERS.values(), ids=OTHERS)
def test_other_models_have_the_same_probabilities(settings, tmp_path):
    """Step by step with ONNX as at once in torch, for sources of all lengths."""
    import onnx

    model, same = (sharpen(build(double=False, **{**ONE_LAYER, **settings})) for _ in range(2))
    prepare(model)
    graphs = graphs_of(model)
    for name, graph in graphs.items():
        onnx.save(graph.model, str(tmp_path / f"{name}.onnx"))
    ours = Model(tmp_path, {"graphs": {name: graph.about() for name, graph in graphs.items()}}, threads=1)
    for lengths in [7, 1, 13, 4], [1, 1], [5], [40, 39]:
        rows = len(lengths)
        source, target = sentences(lengths), targets([8] * rows)
        with torch.no_grad():
            theirs = same.get_normalized_probs(same.decoder(target, same.encoder(source)), log_probs=True)
        memory, order = ours.encode(source.numpy()), np.zeros((rows, 1), np.int64)
        states = ours.begin(memory)
        for t in range(8):
            log_probs, states = ours.step(target[:, t : t + 1].numpy(), order, t + 1, memory, states)
            np.testing.assert_allclose(log_probs[:, 0], theirs[:, t], rtol=0, atol=1e-4)
            order = np.arange(rows)[:, None]


# ---- what cannot be exported


@pytest.mark.stock
def test_an_old_torch_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "1.12.1+cpu")
    with pytest.raises(Problem, match=r"torch is 1.12.1\+cpu, but only torch 2.6 or later .* Python 3.11"):
        check_torch()


@pytest.mark.stock
def test_a_state_that_grows_is_refused():
    said = "of RUN has --decoder-self-attention softmax, whose state grows .* with --decoder-self-attention luna"
    with pytest.raises(Problem, match=said):
        check(build(**VARIANTS["two-dims-decoder-softmax"]), "RUN")


@pytest.mark.stock
def test_another_model_than_a_luna_is_refused():
    with pytest.raises(Problem, match="of RUN is of Linear: only a luna_transformer can be exported"):
        check(torch.nn.Linear(1, 1), "RUN")


@pytest.mark.stock
def test_torchscript_is_refused_with_the_way_out():
    with pytest.raises(Exception, match=r"torch.jit.script .* scripts/export.sh"):
        torch.jit.script(build())
