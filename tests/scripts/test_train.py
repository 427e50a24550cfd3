"""scripts/train.sh and the WMT14 configurations, through the real commands at the smoke size."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import (
    ENV,
    HANGS,
    ROOT,
    SOON,
    USER_DIR,
    last_words,
    prepared,
    processes_with,
    run,
    script,
    stop_when,
    wait_until,
    writer_stopped,
)
from luna_tools.training.settings import EXPERIMENT
from omegaconf import OmegaConf

import fairseq_luna  # noqa: F401  torch loads fairseq's checkpoints once this is imported

CONFIGS = ROOT / "configs"
DOCS = ROOT / "docs" / "wmt14.md"
NO_DROPOUT = "model.dropout=0", "model.attention_dropout=0", "model.activation_dropout=0"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Prepared data of 300 pairs, in a folder whose name wants quoting."""
    return prepared(tmp_path_factory.mktemp("it's a folder"))


def train(data: Path, out: Path, *words) -> list:
    command = script("luna_tools.training.command", "wmt14_adam", "--data", data, "--out", out)
    return [*command, "layout=smoke", "dataset.max_tokens=256", "optimization.max_update=12", *map(str, words)]


def figures(folder: Path) -> list:
    """(updates, loss) as logged, of training and of validation."""
    found = []
    for line in open(folder / "train.log", encoding="utf-8"):
        record = re.search(r"\b(train_inner|valid)\b[^{]*(\{\"epoch\".*\})\s*$", line)
        if record:
            values = json.loads(record.group(2))
            prefix = "valid_" if record.group(1) == "valid" else ""
            found.append((prefix, values[prefix + "num_updates"], values[prefix + "loss"]))
    return found


def checkpoint(folder: Path, name: str = "last") -> dict:
    return torch.load(str(folder / "checkpoints" / f"checkpoint_{name}.pt"), map_location="cpu")


@pytest.fixture(scope="module")
def two_processes(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "two"
    run(train(data, out, "--processes", 2, "optimization.update_freq=[1]", *NO_DROPOUT))
    return out


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one"
    run(train(data, out, "optimization.update_freq=[2]", *NO_DROPOUT))
    return out


@pytest.mark.release
@pytest.mark.stock
def test_two_processes_are_one_with_twice_the_accumulation(one_process, two_processes):
    assert len(figures(one_process)) > 2
    assert figures(one_process) == figures(two_processes)
    one, two = checkpoint(one_process)["model"], checkpoint(two_processes)["model"]
    assert one.keys() == two.keys()
    for name in one:
        if not name.endswith("._float_tensor"):  # fairseq 0.12.2 saves uninitialised memory
            torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)


@pytest.mark.release
def test_a_checkpoint_goes_on_with_another_number_of_processes(data, one_process, two_processes, tmp_path):
    shutil.copytree(one_process, tmp_path / "now two", symlinks=True)
    shutil.copytree(two_processes, tmp_path / "now one", symlinks=True)
    begin = two_processes / "checkpoints" / "checkpoint_last.pt"  # heeded at the beginning alone
    words = *NO_DROPOUT, "optimization.max_update=16", f"checkpoint.finetune_from_model='{begin}'"
    said = run(train(data, tmp_path / "now two", "--processes", 2, "optimization.update_freq=[1]", *words)).stdout
    assert "distributed_world_size was 1, now 2" in said
    run(train(data, tmp_path / "now one", "optimization.update_freq=[2]", *words))
    before = float(figures(one_process)[-1][2])
    for name in "now two", "now one":
        assert re.search(r"Loaded checkpoint .* @ 12 updates", (tmp_path / name / "train.log").read_text())
        _, updates, loss = figures(tmp_path / name)[-1]
        assert updates == "16" and before - 1 < float(loss) < before


@pytest.mark.stock
def test_a_run_folder(one_process, data):
    """What train.sh promises to leave."""
    assert (one_process / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((one_process / "tensorboard" / "train_inner").glob("events.*"))
    assert (one_process / "data" / "data-bin" / "dict.en.txt").samefile(data / "data-bin" / "dict.en.txt")
    composed = OmegaConf.load(str(one_process / "config" / "config.yaml"))
    assert composed.model.encoder_embed_dim == 64 and composed.optimization.update_freq == [2]
    assert composed.model.share_all_embeddings is True
    log = (one_process / "train.log").read_text(encoding="utf-8")
    assert " | INFO | fairseq_cli.train | " in log and log.count("done training") == 1


@pytest.mark.release
def test_torch_ddp_finds_no_unused_parameter(tmp_path):
    """DDP, without its search for unused parameters, fails at the second step if one had no gradient at the first."""
    script = tmp_path / "ddp.py"
    script.write_text(
        """
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tiny import VARIANTS, build, sentences, targets

dist.init_process_group("gloo")
source, target = sentences([7, 5, 9], seed=dist.get_rank()), targets([6, 8, 4], seed=dist.get_rank())
for name, settings in VARIANTS.items():
    model = DistributedDataParallel(build(**settings).train())
    for _ in range(3):
        model.zero_grad()
        model(source, None, target)[0].square().mean().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    both = [torch.empty_like(gradients) for _ in range(2)]
    dist.all_gather(both, gradients)
    assert torch.equal(*both) and gradients.abs().sum() > 0, name
print("all is well")
"""
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    env = {**ENV, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(torchrun, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=HANGS)
    assert done.returncode == 0 and done.stdout.count(b"all is well") == 2, done.stdout.decode()


@pytest.mark.release
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
@pytest.mark.parametrize("how, saving", [(signal.SIGKILL, "2_8"), (signal.SIGTERM, "1_4")], ids=["SIGKILL", "SIGTERM"])
def test_killed_training_leaves_nothing_at_work_and_goes_on(data, tmp_path, how, saving, two_processes):
    """Killed while it saves a checkpoint, in a later epoch and in the first."""
    out = tmp_path / "killed"
    words = "--processes", 2, "optimization.update_freq=[1]", "checkpoint.save_interval_updates=4", *NO_DROPOUT
    with writer_stopped(out / "checkpoints" / f"checkpoint_{saving}.pt.tmp") as writing:
        (out / "settings.json").write_text("{}")  # the folder is of an earlier run
        process = subprocess.Popen(train(data, out, *words), env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        err = stop_when(writing, process, how)[1]
        assert process.returncode == (-how if how == signal.SIGKILL else 130)
        assert how == signal.SIGKILL or b"the same command goes on" in err
        wait_until(lambda: processes_with(str(out)) == [])

    done = run(train(data, out, *words))
    assert checkpoint(out)["optimizer_history"][-1]["num_updates"] == 12
    assert figures(out)[-1] == figures(two_processes)[-1]
    assert "12 updates done" in done.stdout


SIGNALLED = """
import os, signal, sys
from pathlib import Path
from luna_tools.console import entry, go_on_later
from luna_tools.processes import run

os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
go_on_later()
entry("train", lambda: run([sys.executable, "-c", ""], Path("log")))
"""


def test_a_signal_while_a_command_begins_is_not_lost(tmp_path):
    command = [sys.executable, "-c", SIGNALLED]
    done = subprocess.run(command, env=ENV, cwd=str(tmp_path), capture_output=True, timeout=HANGS)
    assert done.returncode == 130 and done.stderr == b"\ntrain: stopped; the same command goes on from here\n"


# ---- configurations


def commands_of_the_guide() -> dict:
    """The fairseq-train commands of docs/wmt14.md by the words in bold before them."""
    text = DOCS.read_text(encoding="utf-8")
    found = re.findall(r"\*\*([^*\n]+)\*\*\n\n```bash\n(fairseq-train [^`]+)```", text)
    return {name: shlex.split(command.replace("\\\n", " ")) for name, command in found}


CONFIGURATIONS = {
    "paper": ["wmt14_paper"],
    "adam": ["wmt14_adam"],
    "paper, Transformer": ["wmt14_paper", "model=transformer_wmt_en_de"],
    "adam, Transformer": ["wmt14_adam", "model=transformer_wmt_en_de"],
}
BOTH_WAYS = """
import json, sys
from argparse import Namespace
import fairseq_luna
from fairseq import options
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf
try:
    from hydra import compose, initialize_config_dir
except ImportError:
    from hydra.experimental import compose, initialize_config_dir

def plain(cfg):
    return OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)

folder, configurations, commands = json.loads(sys.argv[1])
sys.argv[1:] = []
found = {}
for name, (config, *overrides) in configurations.items():
    args = options.parse_args_and_arch(options.get_training_parser(), commands[name])
    by_arch = convert_namespace_to_omegaconf(args)
    model = vars(by_arch.model) if isinstance(by_arch.model, Namespace) else plain(by_arch.model)
    by_arch.model = None
    by_arch = {**plain(by_arch), "model": model}
    hydra_init(config)
    with initialize_config_dir(config_dir=folder):
        by_yaml = compose(config, overrides=overrides)
        add_defaults(by_yaml)
    found[name] = by_arch, plain(by_yaml)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def both_ways() -> dict:
    """Of each configuration, what fairseq-train makes of the guide's command and hydra of the YAML."""
    commands = {name: words[1:] for name, words in commands_of_the_guide().items()}
    for words in commands.values():
        words[words.index("--user-dir") + 1] = str(USER_DIR)
    given = ["common.user_dir=" + str(USER_DIR), "task.data=DATA/data-bin"]
    configurations = {name: [*words, *given] for name, words in CONFIGURATIONS.items()}
    request = json.dumps([str(CONFIGS), configurations, commands])
    return json.loads(run([sys.executable, "-c", BOTH_WAYS, request]).stdout.splitlines()[-1])


@pytest.mark.stock
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_arch_and_yaml_say_the_same(both_ways, name):
    by_arch, by_yaml = both_ways[name]
    if "Transformer" in name:  # fairseq hands that model all flags of the command, and has no dataclass of it
        assert by_arch["model"]["arch"] == by_yaml["model"]["_name"]
        unless_given = {"base_layers": 0, "max_source_positions": 1024, "max_target_positions": 1024}
        by_arch["model"] = {key: {**unless_given, **by_arch["model"]}.get(key) for key in by_yaml["model"]}
    by_arch["model"].pop("_name", None), by_yaml["model"].pop("_name")  # of the architecture, and of the model
    assert by_yaml["common"].pop("reset_logging") is True  # what hydra alone needs
    for group in "task", "model", "criterion", "optimizer", "lr_scheduler":
        assert by_yaml[group] == by_arch[group], group
    for group in "common", "dataset", "optimization", "checkpoint":
        assert len(by_yaml[group]) > 5
        assert by_yaml[group] == {key: by_arch[group][key] for key in by_yaml[group]}, group


@pytest.mark.parametrize("layout", sorted(path.stem for path in (CONFIGS / "layout").glob("*gpu.yaml")))
def test_layouts_make_the_same_batch(layout):
    said = OmegaConf.load(str(CONFIGS / "layout" / f"{layout}.yaml"))
    gpus = said.distributed_training.distributed_world_size
    assert layout == f"{gpus}gpu"
    assert gpus * said.dataset.max_tokens * said.optimization.update_freq[0] == 65536


def test_transformer_yaml_has_the_settings_of_luna():
    luna, transformer = (
        OmegaConf.to_container(OmegaConf.load(str(CONFIGS / "model" / f"{name}_wmt_en_de.yaml")))
        for name in ("luna_transformer", "transformer")
    )
    both = [key for key in luna if key in transformer and key != "_name"]
    assert len(both) > 20
    follows = "decoder_embed_dim", "decoder_ffn_embed_dim"
    assert all(luna[key] == transformer[key] for key in both if key not in follows)


# ---- bad input

REFUSED = {
    "config": (["no_such_config"], "there is no configuration no_such_config"),
    "layout": (["wmt14_paper", "layout=4gpu"], "layout=4gpu is for 4 process(es), but this training has 1"),
    "processes": (["wmt14_paper", "--processes", "3"], "for 3 process(es)"),
    "word": (["wmt14_paper", "model.dropout"], "model.dropout is no KEY=VALUE"),
    "rendezvous": (["wmt14_paper", "--master-addr", "h"], "give --nnodes too"),
    "nodes": (["wmt14_paper", "--nnodes", "1:4"], "--nnodes must be a number of machines, but is 1:4"),
    "key": (
        ["wmt14_paper", "layout=smoke", "model.projection_lenght=16"],
        "there is no setting model.projection_lenght in wmt14_paper.yaml, nor in what it chooses of fairseq; did you "
        "mean model.projection_length?",
    ),
    "key-of-another-group": (
        ["wmt14_paper", "layout=smoke", "dataset.num_batch_buckets=3", "task.eval_bleu=true"],
        "no setting dataset.num_batch_buckets in wmt14_paper.yaml, nor in what it chooses of fairseq; did you mean "
        "task.num_batch_buckets?",
    ),
    "model": (["wmt14_paper", "layout=smoke", "model=luna"], "luna_transformer_wmt_en_de"),
}


@pytest.mark.parametrize("words, message", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(data, tmp_path, words, message):
    command = [sys.executable, "-m", "luna_tools.training.command", *words]
    done = run([*command, "--cpu", "--data", str(data), "--out", str(tmp_path / "run")], fails=True)
    assert message in done.stderr
    assert "Traceback" not in done.stderr or "the last lines of" in done.stderr


@pytest.mark.release
@pytest.mark.stock
def test_settings_that_the_yaml_does_not_list(data, tmp_path):
    """Of fairseq's task, optimizer and model, the last from before fairseq had dataclasses."""
    out = tmp_path / "run"
    words = "task.eval_bleu=true", "optimizer.use_old_adam=true", "model.no_decoder_final_norm=true"
    more = "optimization.max_update=2", "dataset.validate_interval_updates=2", "dataset.max_valid_steps=1"
    run(train(data, out, "model=transformer_wmt_en_de", *words, *more))
    composed = OmegaConf.load(str(out / "config" / "config.yaml"))
    assert composed.task.eval_bleu is composed.optimizer.use_old_adam is composed.model.no_decoder_final_norm is True
    assert '"valid_bleu"' in (out / "train.log").read_text(encoding="utf-8")
    assert json.loads((out / "settings.json").read_text())["task.eval_bleu"] is True


def test_folder_without_data_is_refused(tmp_path):
    command = [sys.executable, "-m", "luna_tools.training.command", "wmt14_paper", "--data", str(tmp_path)]
    assert "holds no data-bin/" in run([*command, "--out", str(tmp_path / "run")], fails=True).stderr


def test_going_on_with_another_model_is_refused(data, one_process):
    done = run(
        train(data, one_process, "optimization.update_freq=[2]", *NO_DROPOUT, "model.encoder_layers=1"), fails=True
    )
    assert "model.encoder_layers was 2, now 1" in done.stderr and "another --out" in done.stderr


def test_a_training_that_is_done_is_left_alone(data, one_process, tmp_path):
    """Also where its data have moved."""
    shutil.copytree(one_process, tmp_path / "done", symlinks=True)
    shutil.copytree(data, tmp_path / "moved")
    said = run(train(tmp_path / "moved", tmp_path / "done", "optimization.update_freq=[2]", *NO_DROPOUT)).stdout
    assert "has done all of its 12 updates" in said
    assert checkpoint(tmp_path / "done")["optimizer_history"][-1]["num_updates"] == 12
    assert (tmp_path / "done" / "data").samefile(tmp_path / "moved")
    (tmp_path / "both").mkdir()
    for name in "done", "moved":
        (tmp_path / name).rename(tmp_path / "both" / name)
    assert (tmp_path / "both" / "done" / "data" / "manifest.json").exists()


@pytest.mark.release
def test_a_training_of_before_a_setting_came_goes_on(data, one_process, tmp_path):
    """As what the setting's default is, and as nothing else; and of before architectures were models of their own.

    Settings that leave the training as it is may change, and so may the form of the loss.
    """
    shutil.copytree(one_process, tmp_path / "old", symlinks=True)
    record, last = tmp_path / "old" / "settings.json", tmp_path / "old" / "checkpoints" / "checkpoint_last.pt"
    settings, state = json.loads(record.read_text()), checkpoint(tmp_path / "old")
    assert settings.pop("model.pack_values") == state["cfg"]["model"].pop("pack_values") == "projected"
    assert settings.pop("model.arch") == state["cfg"]["model"].pop("arch") == "luna_transformer_wmt_en_de"
    settings["model._name"] = state["cfg"]["model"]["_name"] = "luna_transformer"
    assert settings["criterion._name"] == "chunked_label_smoothed_cross_entropy"
    settings["criterion._name"] = state["cfg"]["criterion"]["_name"] = "label_smoothed_cross_entropy"
    record.write_text(json.dumps(settings))
    torch.save(state, str(last))
    words = "optimization.update_freq=[2]", *NO_DROPOUT
    done = run(train(data, tmp_path / "old", *words, "model.pack_values=unprojected"), fails=True)
    assert "model.pack_values was 'projected', now 'unprojected'" in done.stderr
    neither = "model.checkpoint_activations=true", "task.eval_bleu=true", "dataset.max_valid_steps=1"
    said = run(train(data, tmp_path / "old", *words, *neither, "optimization.max_update=13")).stdout
    assert "optimization.max_update was 12, now 13" in said and "pack_values" not in said and "criterion" not in said
    assert "model.checkpoint_activations was False, now True" in said and "task.eval_bleu was None, now True" in said
    assert checkpoint(tmp_path / "old")["optimizer_history"][-1]["num_updates"] == 13
    assert json.loads(record.read_text())["model.pack_values"] == "projected"


def test_what_makes_another_experiment():
    for phrase in "model.checkpoint_activations was", "model.export was", "task.eval_bleu_detok was", "common.fp16 was":
        assert not EXPERIMENT.match(phrase), phrase
    for phrase in "model.export_more was", "model.dropout was", "task.left_pad_source was", "data: dict.en.txt was":
        assert EXPERIMENT.match(phrase), phrase


OWN = """
model: {_name: luna_transformer_tiny_hybrid, share_all_embeddings: true}
criterion: {_name: cross_entropy}
dataset: {max_tokens: 1024, disable_validation: true}
optimization: {max_update: 1, lr: [0.001]}
optimizer: {_name: adam}
lr_scheduler: {_name: fixed, lr: "${optimization.lr}"}
checkpoint: {no_epoch_checkpoints: true}
task: {_name: translation, data: "???", source_lang: en, target_lang: de}
"""


@pytest.mark.release
@pytest.mark.stock
def test_a_yaml_that_names_an_architecture(data, tmp_path):
    """It is that one, and stays so when it goes on. Another model under its name does not go on."""
    (tmp_path / "own.yaml").write_text(OWN)
    command = [sys.executable, "-m", "luna_tools.training.command", str(tmp_path / "own.yaml"), "--cpu"]
    command += ["--data", str(data), "--out", str(tmp_path / "run")]
    run(command)
    state = checkpoint(tmp_path / "run")
    assert state["cfg"]["model"]["arch"] == "luna_transformer_tiny_hybrid"
    assert state["model"]["encoder.layers.2.ffn.fc1.weight"].shape == (480, 128)
    said = run([*command, "optimization.max_update=2"]).stdout
    assert "optimization.max_update was 1, now 2" in said and "model." not in said
    state["cfg"]["model"].update(cross_attention="packed", arch="luna_transformer_tiny")
    torch.save(state, str(tmp_path / "run" / "checkpoints" / "checkpoint_last.pt"))
    refused = run([*command, "optimization.max_update=3"], fails=True).stderr
    assert "model.cross_attention was 'packed', now 'softmax'" in refused and "another --out" in refused


def test_another_experiment_does_not_go_on_in_a_folder(data, one_process, tmp_path):
    """Whether it is done or not, and also where a YAML has changed; the record stays as it was."""
    before = (one_process / "settings.json").read_bytes()
    words = "optimization.update_freq=[2]", *NO_DROPOUT
    done = run(train(data, one_process, *words, "schedule=linear", "common.seed=2"), fails=True)
    assert "lr_scheduler._name was 'inverse_sqrt', now 'polynomial_decay'" in done.stderr
    assert "common.seed was 1, now 2" in done.stderr
    shutil.copytree(CONFIGS, tmp_path / "configs")
    own = tmp_path / "configs" / "wmt14_adam.yaml"
    own.write_text(own.read_text().replace("label_smoothing: 0.1", "label_smoothing: 0.2"))
    command = train(data, one_process, *words)
    command[command.index("wmt14_adam")] = str(own)
    assert "criterion.label_smoothing was 0.1, now 0.2" in run(command, fails=True).stderr
    assert (one_process / "settings.json").read_bytes() == before


@pytest.mark.release
def test_without_its_last_checkpoint_it_goes_on_from_the_newest(data, one_process, tmp_path):
    """Begun with another model, too: it is not begun with again."""
    out, begin = tmp_path / "run", one_process / "checkpoints" / "checkpoint_last.pt"
    words = "optimization.update_freq=[2]", *NO_DROPOUT, "checkpoint.save_interval_updates=4"
    words += (f"checkpoint.finetune_from_model='{begin}'",)
    run(train(data, out, *words))
    last = out / "checkpoints" / "checkpoint_last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    assert "checkpoint_last.pt cannot be loaded" in run(train(data, out, *words), fails=True).stderr
    last.unlink()
    (newest,) = (out / "checkpoints").glob("checkpoint_*_12.pt")
    newest.unlink()
    run(train(data, out, *words))
    assert re.search(r"Loaded checkpoint .*_8.pt .* @ 8 updates", (out / "train.log").read_text(encoding="utf-8"))
    assert checkpoint(out)["optimizer_history"][-1]["num_updates"] == 12


@pytest.mark.release
def test_two_machines_meet(data, two_processes, tmp_path):
    """Two of torchrun's nodes on this one, in a folder that they share; one process each."""
    out = tmp_path / "run"
    words = train(data, out, "optimization.update_freq=[1]", *NO_DROPOUT, "--nnodes", 2)
    with socket.socket() as kept:
        kept.setsockopt(
            socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
        )  # nobody else is given the port, and torch can take it
        kept.bind(("127.0.0.1", 0))
        words += ["--master-addr", "127.0.0.1", "--master-port", str(kept.getsockname()[1])]
        nodes = [subprocess.Popen([*words, "--node-rank", rank], env=ENV, stderr=subprocess.PIPE) for rank in "01"]
        wait_until(lambda: any(node.poll() is not None for node in nodes))
        said = [last_words(node, SOON) for node in nodes]
        for node in nodes:
            node.kill()  # where it waits for the other
        assert [node.returncode for node in nodes] == [0, 0], said
    assert figures(out) == figures(two_processes)
    assert sorted(path.name for path in out.glob("*.log")) == ["train.log"]


def test_other_data_are_refused(data, one_process, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    with open(other / "data-bin" / "dict.en.txt", "a") as file:
        file.write("more 1\n")
    done = run(train(other, one_process, "optimization.update_freq=[2]", *NO_DROPOUT), fails=True)
    assert "data: dict.en.txt was" in done.stderr and "another --out" in done.stderr


def test_two_trainings_in_one_folder_are_refused(data, one_process):
    import fcntl

    with open(one_process / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(train(data, one_process, "optimization.update_freq=[2]", *NO_DROPOUT), fails=True)
    assert "another run is at work" in done.stderr
