"""The workarounds of fairseq_luna/compat/: what they mend, and that they touch nothing else."""

import argparse
import io
import logging
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, USER_DIR, cli, fairseq, in_child, in_children, run
from fairseq import checkpoint_utils, options
from fairseq.data import Dictionary, LanguagePairDataset, TokenBlockDataset, data_utils, indexed_dataset, iterators
from fairseq.data.iterators import EpochBatchIterator
from fairseq.dataclass import utils as dataclass_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.models import BaseFairseqModel
from fairseq.models.transformer import TransformerModel, base_architecture
from fairseq.modules import AdaptiveSoftmax
from fairseq.optim import FP16Optimizer
from fairseq.search import DiverseBeamSearch
from fairseq.sequence_generator import SequenceGenerator
from fairseq.trainer import Trainer
from fairseq_cli import preprocess
from fairseq_cli import train as fairseq_train
from omegaconf import OmegaConf
from tiny import PAD, build, dictionary, each, sentences, sharpen, task

from fairseq_luna import compat

pytestmark = pytest.mark.stock

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| INFO \| [\w.]+ \| ")
LINES = {"train": 61, "valid": 13, "test": 61}  # none a multiple of 8


torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])  # imports torch's compiler, once for all forked processes


def kill_when_half_written(path):
    """Have the kernel kill this process once it has written half of the size of `path` to any file."""
    half = os.path.getsize(path) // 2
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))


def training(data, save_dir, *words, arch="transformer"):
    """A few updates of a tiny model, by default one without a config dataclass, saving a checkpoint every three."""
    sizes = ("layers=1", "embed-dim=8", "ffn-embed-dim=8", "attention-heads=2")
    sizes = [f"--{side}-{size}" for side in ("encoder", "decoder") for size in sizes]
    return (
        *(data, "--save-dir", save_dir, "--arch", arch, *sizes, "--dropout", 0.1, "--cpu", "--num-workers", 0),
        *("--optimizer", "adam", "--lr", 0.01, "--max-tokens", 100, "--max-update", 9),
        *("--save-interval-updates", 3, *words),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """61 training, 13 validation and 61 test pairs of random words, binarised."""
    folder = tmp_path_factory.mktemp("data")
    words = random.Random(1)
    for split, lines in LINES.items():
        pairs = [words.choices("abcdefghij", k=words.randint(1, 8)) for _ in range(lines)]
        (folder / f"{split}.en").write_text("".join(" ".join(pair) + "\n" for pair in pairs))
        (folder / f"{split}.de").write_text("".join(" ".join(pair[::-1]) + "\n" for pair in pairs))
    prefixes = [f"--{split}pref={folder / split}" for split in LINES]
    assert in_child(cli, preprocess, "-s", "en", "-t", "de", *prefixes, "--destdir", folder / "bin") == 0
    return folder / "bin"


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A training that was never killed, with BLEU counts in its checkpoints, and its folder."""
    folder = tmp_path_factory.mktemp("trained")
    return run(fairseq("train", *training(data, folder, "--eval-bleu"))), folder


@pytest.fixture(scope="module")
def generated(data, trained):
    return run(fairseq("generate", data, "--path", trained[1] / "checkpoint_last.pt", "--cpu"))


def test_generation_has_a_hypothesis_for_every_line(generated):
    hypotheses = re.findall(r"^H-(\d+)", generated.stdout, re.MULTILINE)
    assert sorted(map(int, hypotheses)) == list(range(61))


def test_log_looks_as_fairseq_means_it_to(trained, generated):
    log = [line for line in generated.stderr.splitlines() if "fairseq" in line and "site-packages" not in line]
    assert log and all(LOG_LINE.match(line) for line in log)
    assert "| INFO | train | epoch 001 |" in trained[0].stdout


def test_commands_print_no_deprecation(trained, generated):
    for done in (trained[0], generated):
        assert not re.search("deprecat|hydra|no longer|pin_memory", done.stderr, re.IGNORECASE), done.stderr


def test_killed_training_goes_on_to_the_same_end(data, trained, tmp_path):
    """Killed before it has copied its first checkpoint to checkpoint_last.pt, then half-way in copying the second."""
    copy = PathManager.copy

    def train(dies_at="", kill=None):
        def copy_or_die(src, dst, overwrite=False):
            if src.endswith(dies_at) and dst.endswith("checkpoint_last.pt"):
                kill(src)
            return copy(src, dst, overwrite)

        PathManager.copy = staticmethod(copy_or_die if kill else copy)
        cli(fairseq_train, "--user-dir", USER_DIR, *training(data, tmp_path, "--eval-bleu"))

    assert in_child(train, "checkpoint_1_3.pt", lambda _: os.kill(os.getpid(), signal.SIGKILL)) == -signal.SIGKILL
    assert in_child(train, "checkpoint1.pt", kill_when_half_written) == -signal.SIGXFSZ
    assert in_child(train) == 0
    assert same(end(tmp_path), end(trained[1]))


def end(folder):
    """What a training has come to: all that its next update would depend on, and its best loss."""
    state = checkpoint_utils.load_checkpoint_to_cpu(str(folder / "checkpoint_last.pt"))
    # fairseq 0.12.2 saves stale copies too (fc1_weight) and uninitialised memory (_float_tensor)
    model = {name: value for name, value in state["model"].items() if not re.search("_(weight|bias|tensor)$", name)}
    assert "decoder.embed_tokens.weight" in model and len(model) > 30
    extra = state["extra_state"]
    others = state["last_optimizer_state"], state["optimizer_history"][-1], extra["train_iterator"], extra.get("best")
    return [model, *others]


SILENT = ("--disable-validation",)
LUNA = ("--arch", "luna_transformer", "--share-all-embeddings", "--projection-length", 3, "--word-dropout", 0.1)
PLATEAU = ("--lr-scheduler", "reduce_lr_on_plateau", "--lr-threshold", 10)  # after which no loss is better
KILLED = {  # what is trained otherwise, from how many parts of data, and by how many processes
    "transformer": (SILENT, 1, 1),
    "two-processes": (SILENT, 1, 2),
    "data-in-parts": (SILENT, 2, 1),
    "luna-accumulating": ((*SILENT, *LUNA, "--update-freq", 2, "--num-workers", 2, "--max-tokens", 75), 1, 1),
    "curriculum": ((*SILENT, "--curriculum", 1, "--update-ordered-indices-seed"), 1, 1),
    "batches-made-anew": ((*SILENT, "--grouped-shuffling", "--update-ordered-indices-seed"), 1, 1),
    "remainder-skipped": ((*SILENT, "--skip-remainder-batch"), 1, 1),
    "plateau": ((*PLATEAU, "--lr-patience", 1), 1, 1),
    "patience": ((*PLATEAU, "--maximize-best-checkpoint-metric", "--patience", 8), 1, 1),
}


@pytest.mark.parametrize("words, parts, processes", each(KILLED, ["luna-accumulating"]))
def test_training_killed_after_chosen_updates_goes_on_to_the_same_end(data, tmp_path, words, parts, processes):
    """Killed in the first epoch, at the end of it, in the second, at the end of that, and when all was done.

    And from an earlier checkpoint, in the second epoch.
    """
    several = ("--distributed-world-size", processes, "--distributed-no-spawn", "--device-id", 0)
    several += ("--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp")
    given = ("--max-tokens", 150, "--max-update", 10, "--save-interval-updates", 1, *words)
    given = training(os.pathsep.join([str(data)] * parts), tmp_path, *given, *(several if processes > 1 else ()))
    args = options.parse_args_and_arch(options.get_training_parser(), list(map(str, given)))
    cfg = convert_namespace_to_omegaconf(args)

    def train(folder, killed_after, restored, rank):
        step = Trainer.train_step

        def step_or_die(self, samples, *args, **kwargs):
            if self.get_num_updates() == killed_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, samples, *args, **kwargs)

        Trainer.train_step = step_or_die
        cfg.checkpoint.save_dir, cfg.checkpoint.restore_file = str(folder), str(restored)
        if processes > 1:
            cfg.distributed_training.distributed_rank = rank
            cfg.distributed_training.distributed_init_method = f"file://{folder}-{killed_after}"
        distributed_utils.call_main(cfg, fairseq_train.main)

    def train_all(name, killed_after=None, restored="checkpoint_last.pt"):
        calls = [(train, tmp_path / name, killed_after, restored, rank) for rank in range(processes)]
        return in_children(*calls)

    def updates(name):
        return checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / name))["optimizer_history"][-1]["num_updates"]

    assert train_all("whole") == [0] * processes
    first, second = updates("whole/checkpoint1.pt"), updates("whole/checkpoint2.pt")
    for killed_after in first - 1, first, first + 1, second:
        assert train_all("killed", killed_after) == [-signal.SIGKILL] * processes
        assert updates("killed/checkpoint_last.pt") == killed_after
    assert train_all("killed", "end") == [0] * processes
    assert same(end(tmp_path / "killed"), end(tmp_path / "whole"))
    assert train_all("killed", "again") == [0] * processes
    assert updates("killed/checkpoint_last.pt") == updates("whole/checkpoint_last.pt")
    earlier = f"whole/checkpoint_2_{first + 1}.pt"
    assert updates(earlier) == first + 1
    assert train_all("earlier", restored=tmp_path / earlier) == [0] * processes
    assert same(end(tmp_path / "earlier"), end(tmp_path / "whole"))


def test_reset_meters_forget_what_patience_has_counted(data, tmp_path):
    """A training that has stopped for want of patience goes on where meters are reset, and not otherwise."""
    given = training(data, tmp_path, "--maximize-best-checkpoint-metric", "--patience", 1, "--no-epoch-checkpoints")

    def updates_after(*words):
        assert in_child(cli, fairseq_train, *given, *words) == 0
        state = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint_last.pt"))
        return state["optimizer_history"][-1]["num_updates"]

    stopped = updates_after()
    assert stopped < 9 and updates_after() == stopped
    assert updates_after("--reset-meters") > stopped


def test_curriculum_ends():
    """Batches are shuffled where that is asked for, whatever was asked for in the epoch before."""
    data, batches = torch.utils.data.TensorDataset(torch.arange(9)), [[number] for number in range(9)]
    iterator = iterators.EpochBatchIterator(data, lambda items: int(items[0][0]), batches, reuse_dataloader=True)
    plain, shuffled, again = (list(iterator.next_epoch_itr(shuffle=shuffle)) for shuffle in (False, True, False))
    assert plain == again == sorted(shuffled) == list(range(9)) and shuffled != plain


HALF_PRECISIONS = pytest.mark.parametrize("name, joined", [("fp16", True), ("fp16", False), ("bf16", False)])


@pytest.fixture
def half_precision(name, joined, monkeypatch):
    """Trains 99 weights by parts of batches, after each part anew from what the last has saved, but for some keys."""
    cfg = OmegaConf.structured(FairseqConfig())
    OmegaConf.set_struct(cfg, False)
    scaling = {"fp16_init_scale": 4, "fp16_scale_window": 3, "fp16_no_flatten_grads": not joined}
    cfg.common = OmegaConf.merge(cfg.common, {name: True, **scaling})
    cfg.optimization.lr, cfg.optimizer = [0.001], {"_name": "adam"}
    dtype = torch.float16 if name == "fp16" else torch.bfloat16
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # what a CPU calls its index

    def train(*parts, lost=(), changed=None):
        weight, file = torch.nn.Parameter(torch.ones(99, dtype=dtype)), io.BytesIO()
        for numbers in parts:
            if changed is not None and file.tell():
                weight.data[:50] = changed
            optimizer = FP16Optimizer.build_optimizer(cfg, [weight])
            if file.tell():
                file.seek(0)
                state = torch.load(file)
                assert state.keys() >= set(lost)
                optimizer.load_state_dict({key: value for key, value in state.items() if key not in lost})
            for number in numbers:
                optimizer.zero_grad()
                optimizer.backward((weight * torch.randn(99, generator=torch.manual_seed(number)).to(dtype)).sum())
                optimizer.step()
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
        copies = optimizer.fp32_params
        return [weight.detach(), copies[None if joined else 0], optimizer.state_dict()]

    return train


@HALF_PRECISIONS
def test_half_precision_goes_on_to_the_bit(name, half_precision):
    """By the weights of 32 bits, and with what the scale of the loss has come to."""
    whole, parted = half_precision(range(8)), half_precision(range(2), range(2, 7), range(7, 8))
    assert same(whole, parted) and not torch.equal(whole[0].float(), whole[1])
    assert name == "bf16" or whole[2]["loss_scale"] == 16


@HALF_PRECISIONS
def test_half_precision_goes_on_from_earlier_checkpoints(name, half_precision):
    """Which have neither: then from the rounded weights, as fairseq does by itself."""
    lost = ["fp32_params", *(["loss_scaler"] if name == "fp16" else [])]
    whole, parted = half_precision(range(8)), half_precision(range(2), range(2, 8), lost=lost)
    assert not torch.equal(parted[1], whole[1])
    torch.testing.assert_close(parted[1], whole[1], rtol=0, atol=0.01)  # about a rounding, and eight steps of 0.001


@HALF_PRECISIONS
def test_half_precision_goes_on_from_a_changed_model(name, half_precision):
    """An average of checkpoints may come with the optimizer of one: what differs is the model's, the rest goes on."""
    (weight, copies, _), (_, want, _) = half_precision(range(2), range(2, 3), changed=7.0), half_precision(range(3))
    torch.testing.assert_close(copies[:50], torch.full((50,), 7.0), rtol=0, atol=0.01)
    torch.testing.assert_close(weight[:50].float(), torch.full((50,), 7.0), rtol=0, atol=0.05)
    assert torch.equal(copies[50:], want[50:])


def test_earlier_checkpoints_go_on(data, tmp_path):
    """Saved before there were counts of validations and weights of 32 bits in them."""
    given = training(data, tmp_path, "--bf16", *PLATEAU, "--lr-patience", 1, "--patience", 8)
    assert in_child(cli, fairseq_train, *given, "--max-update", 6) == 0
    last = str(tmp_path / "checkpoint_last.pt")
    state = torch.load(last)
    del state["extra_state"]["validations"], state["last_optimizer_state"]["fp32_params"]
    torch.save(state, last)
    assert in_child(cli, fairseq_train, *given, "--max-update", 9) == 0
    state = torch.load(last)
    assert state["optimizer_history"][-1]["num_updates"] == 9
    assert "validations" in state["extra_state"] and state["last_optimizer_state"]["fp32_params"]


def same(a, b):
    """Whether two states are equal, to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("how", ["save", "copy"])
def test_killed_while_writing_leaves_the_old_file(tmp_path, how):
    new, last = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"
    for number, path in enumerate((last, new)):
        checkpoint_utils.torch_persistent_save(torch.full((100000,), number), str(path))

    def write(kill=lambda path: None):
        kill(new)
        if how == "save":
            checkpoint_utils.torch_persistent_save(torch.load(str(new)), str(last))
        else:
            PathManager.copy(str(new), str(last), overwrite=True)

    assert in_child(write, kill_when_half_written) == -signal.SIGXFSZ
    assert torch.load(str(last)).max() == 0
    assert in_child(write) == 0
    assert torch.load(str(last)).min() == 1
    assert sorted(tmp_path.iterdir()) == [new, last]


@pytest.mark.skipif(torch.__version__ < (2,), reason="torch 1 aborts when it cannot write, so that nothing is repeated")
@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_repeated_save_is_whole(monkeypatch, failures):
    """On a disk that stays full for that many attempts, noticed half-way in each."""
    pauses = []

    class FullDisk(io.BytesIO):
        def write(self, data):
            if len(pauses) < failures and self.tell() > 400:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(time, "sleep", pauses.append)
    state, file = [torch.ones(300), torch.zeros(300)], FullDisk()
    if failures == 3:
        with pytest.raises((OSError, RuntimeError)):
            checkpoint_utils._torch_persistent_save(state, file)
    else:
        checkpoint_utils._torch_persistent_save(state, file)
        file.seek(0)
        assert len(pauses) == failures and same(torch.load(file), state)


def saved(path, **state):
    """Save the least that fairseq takes for a checkpoint, and `state`."""
    history = [{"optimizer_name": "adam", "lr_scheduler_state": {}, "num_updates": 0}]
    torch.save({"cfg": None, "optimizer_history": history, "extra_state": {"train_iterator": {}}, **state}, str(path))
    return str(path)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_checkpoint_types_are_loaded(tmp_path, core):
    """A Namespace, and the arrays of numpy 1 and 2, which differ in the name of the module."""
    if core == "numpy._core" and np.lib.NumpyVersion(np.__version__) < "2.0.0":
        pytest.skip("numpy 1 cannot read what numpy 2 wrote")
    path = saved(tmp_path / "here.pt", counts=np.arange(4), criterion=argparse.Namespace(beam=5))
    renamed = str(tmp_path / "there.pt")
    with zipfile.ZipFile(path) as here, zipfile.ZipFile(renamed, "w") as there:
        for name in here.namelist():
            there.writestr(name, re.sub(rb"numpy\._?core\.multi", f"{core}.multi".encode(), here.read(name)))
    loaded = checkpoint_utils.load_checkpoint_to_cpu(renamed)
    assert loaded["criterion"].beam == 5
    assert loaded["counts"].tolist() == [0, 1, 2, 3]


class Touch:
    """What a malicious checkpoint does: runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.skipif(torch.__version__ < (2, 6), reason="torch before 2.6 loads every class")
@pytest.mark.parametrize("name, make", [("posix.mkdir", Touch), ("_io.BytesIO", lambda _: io.BytesIO())])
def test_checkpoint_with_anything_else_is_refused(tmp_path, name, make):
    path = saved(tmp_path / "evil.pt", extra=make(tmp_path / "ran"))
    with pytest.raises(pickle.UnpicklingError, match=f"{re.escape(path)} was not loaded: it holds {name},"):
        checkpoint_utils.load_checkpoint_to_cpu(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("size", [0, 3, 1000, -30], ids=["empty", "tiny", "half", "last bytes missing"])
def test_checkpoint_cut_short_is_named(tmp_path, size):
    whole = saved(tmp_path / "whole.pt", model={"weight": torch.ones(300)})
    cut = tmp_path / "cut.pt"
    cut.write_bytes(Path(whole).read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{re.escape(str(cut))} is not a whole checkpoint"):
        checkpoint_utils.load_checkpoint_to_cpu(str(cut))


def test_other_loading_errors_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "none.pt"))
    torch.save({}, str(tmp_path / "keys.pt"))
    with pytest.raises(KeyError):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "keys.pt"))


def test_checkpoint_reaches_the_other_ranks(tmp_path):
    """Resuming on several GPUs: rank 0 loads, and sends on, a state with a config in it."""

    def rank(number):
        torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=number, world_size=2)
        state = {"cfg": OmegaConf.create({"arch": "luna"}), "model": {"w": torch.arange(3)}} if number == 0 else None
        state = distributed_utils.broadcast_object(state, 0, torch.distributed.new_group([0, 1]))
        assert state["cfg"].arch == "luna" and state["model"]["w"].tolist() == [0, 1, 2]

    assert in_children((rank, 0), (rank, 1)) == [0, 0]


@pytest.mark.parametrize("limit", [{"max_tokens": 16}, {"max_sentences": 16}, {}], ids=["tokens", "sentences", "none"])
@pytest.mark.parametrize("sentences", [0, 1, 5, 8, 61])
@pytest.mark.parametrize("as_list", [False, True], ids=["array", "list"])
def test_batches_hold_every_sentence_once(sentences, limit, as_list):
    indices = np.arange(sentences)[::-1]
    batches = data_utils.batch_by_size(
        indices.tolist() if as_list else indices,
        num_tokens_fn=lambda index: 1,
        num_tokens_vec=None if as_list else np.ones(sentences, dtype=np.int64),
        required_batch_size_multiple=8,
        **limit,
    )
    assert [index for batch in batches for index in batch] == indices.tolist()
    assert all(len(batch) % 8 == 0 for batch in batches[:-1])


def test_fixed_shapes_are_left_alone():
    batches = data_utils.batch_by_size(
        np.arange(3), num_tokens_fn=lambda index: 1, fixed_shapes=[(2, 1)], required_batch_size_multiple=2
    )
    assert [len(batch) for batch in batches] == [2, 1]


@pytest.fixture
def root():
    """The root logger, to be spoilt."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = before


def test_stray_log_format_is_mended(root, monkeypatch):
    monkeypatch.delenv("LOGLEVEL", raising=False)
    root.handlers.clear()
    logging.basicConfig(level=logging.DEBUG)  # as wav2vec2_classification.py does
    compat.restore_logging()
    line = root.handlers[0].format(logging.makeLogRecord({"name": "fairseq_cli.generate", "levelname": "INFO"}))
    assert LOG_LINE.match(line)
    assert root.level == logging.INFO


def test_other_log_format_is_kept(root):
    root.handlers.clear()
    logging.basicConfig(level=logging.DEBUG, format="mine %(message)s")
    compat.restore_logging()
    assert root.handlers[0].formatter._fmt == "mine %(message)s"
    assert root.level == logging.DEBUG


def deprecated():
    """What every command does: compose the configuration, enter torch's autocast, and load data."""
    convert_namespace_to_omegaconf(argparse.Namespace(arch="transformer", task="translation"))
    torch.cuda.amp.autocast(enabled=False)
    list(EpochBatchIterator(torch.utils.data.TensorDataset(torch.ones(1)), lambda items: items, [[0]]).next_epoch_itr())


def test_deprecations_are_silenced_and_nothing_else():
    others = [DeprecationWarning("x is deprecated"), FutureWarning("torch.cuda"), UserWarning("hydra")]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compat.silence_deprecations()
        deprecated()
        for other in others:
            warnings.warn(other)  # noqa: B028
    assert [warning.message for warning in seen if "CUDA is not available" not in str(warning.message)] == others


@pytest.mark.parametrize("arch, optimizer", [("luna_transformer", "apollo"), ("transformer", "adam")])
def test_bf16_trains_in_bfloat16(data, tmp_path, arch, optimizer):
    def train():
        more = ("--bf16", "--optimizer", optimizer, "--max-update", 2, "--disable-validation", "--user-dir", USER_DIR)
        cli(fairseq_train, *training(data, tmp_path, arch=arch), *more)

    assert in_child(train) == 0
    state = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint_last.pt"))
    assert state["optimizer_history"][-1]["num_updates"] == 2
    for name, value in state["model"].items():  # which fairseq saves in float32
        assert torch.equal(value, value.bfloat16().float()), name
    assert not state["cfg"]["common"]["tpu"]


def uses_tpu():
    parsed = argparse.Namespace(bf16=True, tpu=True)  # fairseq sets the second by the first
    return "common.tpu=True" in dataclass_utils.override_module_args(parsed)[0]


def test_tpu_is_used_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fairseq-train", "--bf16"])
    assert not uses_tpu()
    monkeypatch.setattr(sys, "argv", ["fairseq-train", "--bf16", "--tpu"])
    assert uses_tpu()


def test_bf16_is_left_alone_where_there_may_be_a_tpu(monkeypatch, tmp_path):
    monkeypatch.setattr(dataclass_utils, "override_module_args", dataclass_utils.override_module_args.__wrapped__)
    (tmp_path / "torch_xla.py").touch()
    with monkeypatch.context() as there:
        there.syspath_prepend(tmp_path)
        compat.keep_bf16_off_tpus()
        assert uses_tpu()
    compat.keep_bf16_off_tpus()
    assert not uses_tpu()


def transformer():
    """fairseq's Transformer, tiny."""
    torch.manual_seed(1)
    sizes = dict.fromkeys(("encoder_embed_dim", "decoder_embed_dim", "encoder_ffn_embed_dim"), 16)
    args = argparse.Namespace(**sizes, encoder_layers=1, decoder_layers=1, share_all_embeddings=True)
    base_architecture(args)
    words = dictionary()
    return TransformerModel.build_model(args, task(words, words)).eval()


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda: build(double=False), transformer], ids=["luna", "transformer"])
def test_generation_in_bf16(make):
    model = make()
    cfg = OmegaConf.create({"common": {"bf16": True}, "common_eval": {"path": "model.pt"}, "generation": {"beam": 2}})
    model.prepare_for_inference_(cfg)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    found = diverse_hypotheses(model, [[0, 1]])
    assert all(0 < len(tokens) <= 11 for tokens in found[1])


def test_a_model_trained_in_bf16_is_loaded_in_float32():
    model = build(double=False)  # for `from_pretrained`, which hands over the settings of the training
    cfg = OmegaConf.create({"common": {"bf16": True}, "common_eval": {"path": None}, "generation": {"beam": 2}})
    model.prepare_for_inference_(cfg)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def pairs(lengths):
    """A data set of these lengths of source and target, with three buckets of lengths on either side."""
    items, sizes = [torch.full((n,), 5) for n in lengths], np.array(lengths)
    words = dictionary()
    return LanguagePairDataset(items, sizes, words, items, sizes, words, num_buckets=3)


def test_buckets_pad_every_sentence_to_few_lengths():
    lengths = list(range(1, 41))
    dataset = pairs(lengths)
    assert dataset.src.sizes.tolist() == [14] * 14 + [27] * 13 + [40] * 13
    batches = dataset.batch_by_size(dataset.ordered_indices(), max_tokens=120)
    assert sorted(index for batch in batches for index in batch) == list(range(40))
    for batch in batches:
        shape = dataset.collater([dataset[index] for index in batch])["net_input"]["src_tokens"].shape
        assert shape == (len(batch), max(dataset.src.sizes[batch])) and shape[0] * shape[1] <= 120


def test_texts_by_sentence():
    """`--sample-break-mode eos` of language models."""
    texts = [torch.tensor([5, 6, 2]), torch.tensor([2]), torch.tensor([7, 2])]
    dataset = TokenBlockDataset(texts, [3, 1, 2], None, pad=1, eos=2, break_mode="eos")
    assert [item.tolist() for item in dataset] == [text.tolist() for text in texts]


def test_data_beyond_2_gib_is_indexed(tmp_path):
    builder = indexed_dataset.make_builder(str(tmp_path / "text.bin"), "mmap", vocab_size=1000)
    builder._sizes = [2, *map(np.int32, (2**30, 2**30, 5))]  # as after `merge_file_` of what a worker wrote
    builder.finalize(str(tmp_path / "text.idx"))
    index = indexed_dataset.MMapIndexedDataset.Index(str(tmp_path / "text.idx"))
    assert [index[i] for i in range(4)] == [(0, 2), (4, 2**30), (4 + 2**31, 2**30), (4 + 2**32, 5)]


def test_cached_data_has_a_first_batch(tmp_path):
    builder = indexed_dataset.make_builder(str(tmp_path / "text.bin"), "cached")
    for words in [5, 6, 2], [2], [7, 2]:
        builder.add_item(torch.tensor(words))
    builder.finalize(str(tmp_path / "text.idx"))
    dataset = indexed_dataset.make_dataset(str(tmp_path / "text"), "cached", fix_lua_indexing=True)
    batches = EpochBatchIterator(dataset, lambda items: [item.tolist() for item in items], [[2], [0, 1]])
    assert batches.first_batch == [[7, 2]]
    assert list(batches.next_epoch_itr(shuffle=False)) == [[[7, 2]], [[5, 6, 2], [2]]]


LENGTHS = [5, 3, 7, 4, 6, 2]


def diverse_hypotheses(model, batches):
    """Six hypotheses in three groups for sentences of LENGTHS, given by their numbers, in these batches."""
    words, found = model.decoder.dictionary, {}
    search = DiverseBeamSearch(words, num_groups=3, diversity_strength=2.0)
    generator = SequenceGenerator([model], words, beam_size=6, max_len_b=10, search_strategy=search)
    everything = sentences(LENGTHS)
    for batch in batches:
        source = everything[batch, -max(LENGTHS[i] for i in batch) :]
        net_input = {"src_tokens": source, "src_lengths": source.ne(PAD).sum(dim=1)}
        hypotheses = generator.generate([model], {"id": torch.tensor(batch), "net_input": net_input})
        found.update((i, [h["tokens"].tolist() for h in each]) for i, each in zip(batch, hypotheses))
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    "make", [lambda: sharpen(build()), lambda: transformer().double()], ids=["luna", "transformer"]
)
def test_diverse_beam_search_is_the_same_in_every_batch(make):
    model = make()
    want = diverse_hypotheses(model, [[i] for i in range(6)])
    assert len({str(hypotheses) for hypotheses in want.values()}) == 6
    assert diverse_hypotheses(model, [[4, 0, 2], [5, 1, 3]]) == want


def test_applied_twice_is_applied_once():
    def patched():
        return (
            dataclass_utils.override_module_args,
            BaseFairseqModel.prepare_for_inference_,
            (
                data_utils.np,
                sys.modules[LanguagePairDataset.__module__].np,
                sys.modules[TokenBlockDataset.__module__].np,
            ),
            indexed_dataset.MMapIndexedDatasetBuilder.finalize,
            EpochBatchIterator.first_batch,
            DiverseBeamSearch.step,
            *map(vars(Trainer).get, ("get_train_iterator", "state_dict", "load_checkpoint")),
            *map(vars(iterators.EpochBatchIterator).get, ("next_epoch_itr", "_get_iterator_for_epoch")),
            FP16Optimizer.state_dict,
            checkpoint_utils.load_checkpoint,
            checkpoint_utils.load_checkpoint_to_cpu,
            checkpoint_utils._torch_persistent_save,
            data_utils.batch_by_size,
            PathManager.copy,
            list(warnings.filters),
        )

    with warnings.catch_warnings():
        compat.apply()
        once = patched()
        compat.apply()
        assert patched() == once


def test_adaptive_loss_counts_every_word():
    """Also the second of each band, which has the number of padding there."""
    compat.count_every_word_of_a_band()  # a second time, which must not matter
    torch.manual_seed(1)
    words = Dictionary()
    model = argparse.Namespace(decoder=argparse.Namespace(adaptive_softmax=AdaptiveSoftmax(20, 8, [6, 12], 0.0, 2.0)))
    features, target = torch.randn(4, 5, 8), torch.arange(20).view(4, 5)
    want = model.decoder.adaptive_softmax.get_log_prob(features, None).gather(2, target.unsqueeze(2)).squeeze(2)
    outputs, targets = model.decoder.adaptive_softmax(features, target)
    found = torch.zeros(20)
    bands = [torch.arange(20), torch.arange(6, 12), torch.arange(12, 20)]
    for band, output, numbers in zip(bands, outputs, targets):
        found[band] += torch.nn.functional.nll_loss(
            output.log_softmax(-1), numbers, ignore_index=words.pad(), reduction="none"
        )
    counted = torch.arange(20) != words.pad()
    torch.testing.assert_close(found[counted], -want.flatten()[counted])


def test_prefetching_ends_with_the_command(tmp_path):
    """A consumer that nobody reads has ended once the exit is through: what was registered first runs last."""
    program = """
import atexit, queue
atexit.register(lambda: print("alive" if consumer.is_alive() else "ended"))
import fairseq_luna
from fairseq.data.iterators import BackgroundConsumer
consumer = BackgroundConsumer(queue.Queue(2), iter(range(10**9)), None, None)
consumer.daemon = True
consumer.start()
assert consumer.is_alive()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "ended\n" and done.returncode == 0, done.stderr
