"""The real commands, end to end, on a task that must be learnt: to write a word backwards."""

import random
import re
import shutil
import signal
import subprocess
import sys

import fairseq_cli.generate
import fairseq_cli.train
import pytest
import torch
from commands import ENV, ROOT, USER_DIR, cli, fairseq, in_child, run, stop_when, writer_stopped

SIZES = (
    *("--arch", "luna_transformer", "--projection-length", 8, "--share-all-embeddings"),
    *("--encoder-embed-dim", 64, "--encoder-ffn-embed-dim", 128, "--dropout", 0),
    *("--encoder-layers", 2, "--encoder-attention-heads", 4, "--encoder-normalize-before"),
    *("--decoder-layers", 2, "--decoder-attention-heads", 4, "--decoder-normalize-before"),
)
TRAINING = (
    *("--cpu", "--seed", 1, "--num-workers", 0, "--max-tokens", 1024, "--log-format", "simple"),
    *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr", 0.005, "--warmup-updates", 100),
    *("--lr-scheduler", "polynomial_decay", "--criterion", "cross_entropy", "--no-epoch-checkpoints"),
)


def letters(rng, n):
    return [rng.choice("abcdef") for _ in range(n)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Words of one to five letters and the same backwards, binarised."""
    folder, rng = tmp_path_factory.mktemp("reverse"), random.Random(0)
    prefixes = []
    for split, lines in (("train", 6000), ("valid", 61), ("test", 203)):
        pairs = [letters(rng, rng.randint(1, 5)) for _ in range(lines)]
        (folder / f"{split}.in").write_text("".join(" ".join(p) + "\n" for p in pairs))
        (folder / f"{split}.out").write_text("".join(" ".join(p[::-1]) + "\n" for p in pairs))
        prefixes += [f"--{split}pref", folder / split]
    run(
        fairseq(
            *("preprocess", "-s", "in", "-t", "out", *prefixes),
            *("--joined-dictionary", "--destdir", folder / "bin"),
        )
    )
    return folder / "bin"


def trained(data, folder, updates, *flags):
    """The checkpoint of a model that has had enough updates to learn the task."""
    run(
        fairseq(
            *("train", data, "--save-dir", folder, *SIZES, *TRAINING, "--max-tokens", 128, *flags),
            *("--max-update", updates, "--total-num-update", updates, "--disable-validation"),
        )
    )
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def learnt(data, tmp_path_factory):
    """The checkpoint of a local Luna that has learnt the task."""
    local = "--arch", "luna_transformer_local", "--encoder-layers", 1, "--decoder-layers", 1, "--lr", 0.006
    return trained(data, tmp_path_factory.mktemp("learnt"), 400, *local)


@pytest.fixture(scope="module")
def short(data, tmp_path_factory):
    """The checkpoint of a few updates."""
    folder = tmp_path_factory.mktemp("short")
    run(fairseq("train", data, "--save-dir", folder, *SIZES, *TRAINING, "--max-update", 5, "--total-num-update", 5))
    return folder / "checkpoint_last.pt"


def test_a_training_goes_on_with_its_loss_in_chunks(data, short, tmp_path):
    """Begun with fairseq's own, whose name is the same to fairseq."""
    begun, ends, losses = torch.load(str(short))["model"], [], []
    for criterion in "cross_entropy", "chunked_cross_entropy":
        (tmp_path / criterion).mkdir()
        shutil.copy(short, tmp_path / criterion)
        words = "--criterion", criterion, "--max-update", 9, "--total-num-update", 9, "--disable-validation"
        log = run(
            fairseq(
                *("train", data, "--save-dir", tmp_path / criterion, *SIZES, *TRAINING, *words),
                *("--log-format", "json", "--log-interval", 1),
            )
        )
        losses.append(re.findall(r'"loss": "([\d.]+)".*"num_updates": "([6-9])"', log.stdout + log.stderr))
        state = torch.load(str(tmp_path / criterion / short.name))
        assert state["optimizer_history"][-1]["num_updates"] == 9 and state["cfg"]["criterion"]["_name"] == criterion
        ends.append(state["model"])
    assert [update for _, update in losses[0]] == list("6789")
    assert all(abs(float(one) - float(other)) < 0.003 for (one, _), (other, _) in zip(*losses))
    for name, value in ends[0].items():
        moved, apart = (value - begun[name]).norm(), (ends[1][name] - value).norm()
        assert apart <= 0.02 * moved, name


def generated(stdout, kind):
    """The lines of one kind that fairseq-generate printed, by sentence."""
    return {int(i): text for i, text in re.findall(rf"^{kind}-(\d+)\t(.*)$", stdout, re.M)}


def test_reverse_is_learnt(data, learnt):
    assert_learnt(data, learnt)


@pytest.mark.release
def test_reverse_is_learnt_by_the_papers_model(data, tmp_path):
    assert_learnt(data, trained(data, tmp_path, 600, "--lr", 0.004))


def assert_learnt(data, path):
    out = run(fairseq("generate", data, "--path", path, "--cpu", "--beam", 5, "--print-alignment")).stdout
    sources, targets = generated(out, "S"), generated(out, "T")
    found = {i: text.partition("\t")[2] for i, text in generated(out, "H").items()}
    assert sorted(found) == list(range(203))
    assert sum(found[i] == targets[i] for i in found) / len(found) > 0.99
    for i, pairs in generated(out, "A").items():
        pairs = [tuple(map(int, pair.split("-"))) for pair in pairs.split()]
        assert [target for _, target in pairs] == list(range(len(found[i].split())))
        assert all(0 <= source < len(sources[i].split()) for source, _ in pairs)


def interactive(data, model, lines, *flags):
    """Hypotheses by line, of lines given on standard input."""
    command = fairseq("interactive", data, "--path", model, "--cpu", *flags)
    done = run(command, input="".join(line + "\n" for line in lines))
    return {i: text.partition("\t")[2] for i, text in generated(done.stdout, "H").items()}


def test_interactive_answers_every_line(data, learnt):
    lines = ["a b c", "", "f", "b a"]
    found = interactive(data, learnt, lines, "--buffer-size", 4)
    assert sorted(found) == [0, 1, 2, 3]
    assert (found[0], found[2], found[3]) == ("c b a", "f", "a b")
    assert found[1] == interactive(data, learnt, [""])[0]


@pytest.mark.stock
@pytest.mark.parametrize(
    "flags",
    [(), ("--print-alignment",), ("--print-alignment", "soft")],
    ids=["alone", "with-alignment", "with-weights"],
)
def test_unknown_words_are_replaced_by_source_words(data, short, tmp_path, flags):
    """A model made to say nothing but <unk>: attention points at words of the source, known or not, not at slots."""
    lines = ["a b c d e f", "d", "x y"]
    for lang in ("in", "out"):
        (tmp_path / f"test.in-out.{lang}").write_text("".join(line + "\n" for line in lines))
        shutil.copy(data / f"dict.{lang}.txt", tmp_path)
    command = fairseq("generate", tmp_path, "--dataset-impl", "raw", "--path", short, "--cpu", *flags)
    out = run([*command, "--unkpen=-100", "--max-len-a", "0", "--max-len-b", "6", "--replace-unk"]).stdout
    found = {i: text.partition("\t")[2].split() for i, text in generated(out, "H").items()}
    assert sorted(found) == [0, 1, 2]
    for i, line in enumerate(lines):
        assert found[i] and set(found[i]) <= set(line.split())


@pytest.mark.release
@pytest.mark.stock
def test_killed_and_gone_on_equals_never_killed(data, tmp_path):
    """SIGKILL in the middle of saving; dropout is on, so that seeds count."""

    def training(folder):
        return fairseq(
            *("train", data, "--save-dir", folder, *SIZES, *TRAINING, "--dropout", 0.1),
            *("--max-update", 24, "--total-num-update", 24, "--disable-validation"),
            *("--save-interval-updates", 4, "--log-interval", 1),
        )

    run(training(tmp_path / "whole"))
    assert (tmp_path / "whole" / "checkpoint_last.pt").stat().st_size > 1 << 17
    with writer_stopped(tmp_path / "killed" / "checkpoint_1_16.pt.tmp") as writing:
        process = subprocess.Popen(training(tmp_path / "killed"), env=ENV, stdout=subprocess.DEVNULL)
        stop_when(writing, process)
    assert process.returncode == -signal.SIGKILL
    done = run(training(tmp_path / "killed"))
    assert "Loaded checkpoint" in done.stdout + done.stderr
    whole, killed = (
        torch.load(tmp_path / name / "checkpoint_last.pt", map_location="cpu") for name in ("whole", "killed")
    )
    assert whole["optimizer_history"][-1]["num_updates"] == killed["optimizer_history"][-1]["num_updates"] == 24
    assert list(whole["model"]) == list(killed["model"])
    for name, value in whole["model"].items():
        if not name.endswith("._float_tensor"):  # fairseq 0.12.2 saves uninitialised memory
            assert torch.equal(value, killed["model"][name]), name
    moments, resumed = (state["last_optimizer_state"]["state"] for state in (whole, killed))
    assert all(torch.equal(moments[i]["exp_avg_sq"], resumed[i]["exp_avg_sq"]) for i in moments)


@pytest.mark.stock
def test_a_short_training_generates(data, short):
    out = run(fairseq("generate", data, "--path", short, "--cpu", "--beam", 2)).stdout
    assert sorted(generated(out, "H")) == list(range(203))


OWN = """
model: {_name: luna_transformer_tiny_local, projection_length: 6, encoder_layers: 2, share_all_embeddings: true}
common: {user_dir: "???", cpu: true}
task: {_name: translation, data: "???", source_lang: in, target_lang: out}
criterion: {_name: cross_entropy}
dataset: {max_tokens: 1024, disable_validation: true}
optimization: {max_update: 1, lr: [0.005]}
optimizer: {_name: adam}
lr_scheduler: {_name: fixed, lr: "${optimization.lr}"}
checkpoint: {save_dir: "???", no_epoch_checkpoints: true}
"""


@pytest.mark.release
@pytest.mark.stock
def test_arch_and_yaml_build_the_same_model(data, tmp_path):
    """fairseq-train --arch, and fairseq-hydra-train with our YAML and with one that has the name and little else."""
    run(
        fairseq(
            *("train", data, "--save-dir", tmp_path / "arch", "--arch", "luna_transformer_tiny_local"),
            *("--projection-length", 6, "--encoder-layers", 2, "--share-all-embeddings", *TRAINING),
            *("--max-update", 1, "--total-num-update", 2, "--disable-validation"),
        )
    )
    run(
        [
            *(sys.executable, "-m", "fairseq_cli.hydra_train"),
            *("--config-dir", str(ROOT / "configs"), "--config-name", "quickstart"),
            *("model.projection_length=6", "model.encoder_layers=2", "model.share_all_embeddings=true"),
            *(f"common.user_dir={USER_DIR}", "common.cpu=true", f"task.data={data}"),
            *("task.source_lang=in", "task.target_lang=out", "optimization.max_update=1"),
            *("dataset.disable_validation=true", f"checkpoint.save_dir={tmp_path / 'yaml'}"),
            *(f"hydra.run.dir={tmp_path}", "lr_scheduler.total_num_update=2"),
        ]
    )
    (tmp_path / "own.yaml").write_text(OWN)
    run(
        [
            *(sys.executable, "-m", "fairseq_cli.hydra_train", "--config-dir", str(tmp_path), "--config-name", "own"),
            *(f"common.user_dir={USER_DIR}", f"task.data={data}", f"checkpoint.save_dir={tmp_path / 'own'}"),
            f"hydra.run.dir={tmp_path}",
        ]
    )
    by_arch, by_yaml, by_own = (
        torch.load(tmp_path / name / "checkpoint_last.pt", map_location="cpu")["model"]
        for name in ("arch", "yaml", "own")
    )
    assert {k: v.shape for k, v in by_arch.items()} == {k: v.shape for k, v in by_yaml.items()}
    assert {k: v.shape for k, v in by_arch.items()} == {k: v.shape for k, v in by_own.items()}
    assert by_arch["encoder.packed_embedding"].shape == (6, 128)
    assert len({k.split(".")[2] for k in by_arch if k.startswith("encoder.layers.")}) == 2


@pytest.mark.release
@pytest.mark.stock
def test_settings_of_the_transformer_end_to_end(data, tmp_path):
    """Trained, trained on, pruned on loading, trained on as pruned, and translated with."""
    settings = (
        *("--encoder-layers", 3, "--decoder-layers", 3, "--encoder-layerdrop", 0.2, "--decoder-layerdrop", 0.2),
        *("--checkpoint-activations", "--quant-noise-pq", 0.1, "--adaptive-softmax-cutoff", "8,12"),
        *("--criterion", "adaptive_loss", "--ddp-backend", "legacy_ddp", "--total-num-update", 9),
    )

    def train(folder, updates, *more):
        """How many layers of each stack the checkpoint has, and how many updates it has had."""
        words = (*SIZES, *TRAINING, *settings, "--max-update", updates, "--user-dir", USER_DIR, *more)
        assert in_child(cli, fairseq_cli.train, data, "--save-dir", folder, *words) == 0
        state = torch.load(folder / "checkpoint_last.pt", map_location="cpu")
        stacks = ("encoder.layers.", "encoder.memory.layers.", "decoder.layers.")
        found = [{k[len(stack) :].split(".")[0] for k in state["model"] if k.startswith(stack)} for stack in stacks]
        return [*map(len, found), state["optimizer_history"][-1]["num_updates"]]

    whole, pruned = (tmp_path / name / "checkpoint_last.pt" for name in ("whole", "pruned"))
    assert train(whole.parent, 2) == [3, 3, 3, 2]
    assert train(whole.parent, 4) == [3, 3, 3, 4]
    keep = ("--encoder-layers-to-keep", "0,2", "--decoder-layers-to-keep", "1")
    assert train(pruned.parent, 2, *keep, "--finetune-from-model", whole) == [2, 1, 1, 2]

    shortly = ("--cpu", "--beam", 2, "--max-len-a", 0, "--max-len-b", 7)
    overrides = ("--model-overrides", "{'encoder_layers_to_keep': '0,2', 'decoder_layers_to_keep': '1'}")
    args = (data, "--path", whole, *shortly, *overrides, "--results-path", tmp_path, "--user-dir", USER_DIR)
    assert in_child(cli, fairseq_cli.generate, *args) == 0
    assert sorted(generated((tmp_path / "generate-test.txt").read_text(), "H")) == list(range(203))
    assert sorted(interactive(data, pruned, ["a b", "", "f"], *shortly[1:])) == [0, 1, 2]


BAD_FLAGS = {
    "heads": (("--encoder-attention-heads", 5), "--encoder-attention-heads 5 does not divide"),
    "slots": (("--projection-length", 0), "--projection-length must be at least 1, but is 0"),
    "activation": (("--causal-activation", "softmax"), "invalid choice: 'softmax'"),
    "refused": (("--no-cross-attention",), "--no-cross-attention does not go with Luna: its decoder needs a source"),
}


@pytest.mark.parametrize("flags, message", BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_bad_flags_are_refused(data, tmp_path, flags, message):
    train = fairseq("train", data, "--save-dir", tmp_path, *SIZES, *TRAINING, "--total-num-update", 1, *flags)
    done = run(train, fails=True)
    assert message in done.stderr.strip().splitlines()[-1]


def test_a_checkpoint_of_another_architecture_is_refused(data, learnt, tmp_path):
    train = fairseq(
        *("train", data, "--save-dir", tmp_path, "--restore-file", learnt, *TRAINING, "--max-update", 1),
        *("--total-num-update", 2, "--arch", "luna_transformer_tiny", "--share-all-embeddings"),
    )
    done = run(train, fails=True)
    assert "please ensure that the architectures match" in done.stderr
    assert str(learnt) in done.stderr


def test_a_source_longer_than_the_positions(data, learnt):
    """fairseq refuses it by its limit; told to read on, the model with its fixed positions can."""
    command = fairseq("interactive", data, "--path", learnt, "--cpu", "--max-source-positions", 5)
    refused = run(command, fails=True, input="a b c d e\n")
    assert "max_positions=(5, " in refused.stderr
    assert interactive(data, learnt, ["a b c d e"], "--max-source-positions", 20) == {0: "e d c b a"}
