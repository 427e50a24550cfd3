"""The benchmark works; what it measures is no test's concern."""

import json
import shutil
from argparse import Namespace

import pytest
import torch
from commands import USER_DIR, run, script
from luna_tools.benchmark import counting, operators
from luna_tools.benchmark.command import QUICK, criterion_for
from luna_tools.benchmark.measuring import Crew
from luna_tools.benchmark.model_names import spec_of
from luna_tools.benchmark.reporting import tabulate

from fairseq_luna.modules.causal_attention import head_decays
from fairseq_luna.ops.causal.attention import attend


def benchmark(*args, **options):
    return run(script("scripts/benchmark.py", *args), **options)


def release(*values):
    return pytest.param(*values, marks=pytest.mark.release)


@pytest.mark.parametrize(
    "command, precision, models, points",
    [
        release("train", "bf16", ["transformer", "luna-4-untied-gaussian", "arch:luna_transformer"], ["40:80"]),
        release("decode", "fp32", ["transformer", "luna-5-softmaxcross-softmaxdecoder-bf16", "luna-5-int8"], ["8:5:2"]),
        release("decode", "bf16", ["luna-5"], ["8:1:2"]),
        release("length", "bf16", ["softmax", "fused", "luna-5", "arch:transformer"], ["64:64"]),
        ("operator", "bf16", ["recurrent-decaying", "luna-5"], ["8:100"]),
        release("operator", "bf16", ["sdpa"], ["8:100"]),
        release(
            "operator",
            "bf16",
            ["naive", "chunk-decaying", "luna-5", "luna-16-untied-decaying-unfused"],
            ["8:100", "100:100"],
        ),
    ],
)
def test_every_command(command, precision, models, points, tmp_path):
    out = tmp_path / "a folder"
    words = [command, "--quick", "--cpu", "--threads", 1, "--out", out, "--models", *models, "--points", *points]
    words += ["--precision", precision, "--dispatch"]
    if any(model.startswith("arch:") for model in models):
        # a plugin of the same name elsewhere, as an earlier version would be
        words += ["--user-dir", shutil.copytree(USER_DIR, tmp_path / "elsewhere" / USER_DIR.name)]
    shown = benchmark(*words).stdout
    report = json.loads((out / "results.json").read_text())
    assert report["machine"]["torch threads"] == 1 and report["versions"]["torch"]
    # ours cannot be imported beside another plugin
    assert report["sizes"].get("criterion") == ("label_smoothed_cross_entropy" if command == "train" else None)
    assert len(report["points"]) == len(points)
    for point in report["points"]:
        assert list(point["arms"]) == models
        for found in point["arms"].values():
            assert found["seconds"]["median"] > 0 and found["bytes"] > 0, found
            assert found["time"]["lower quartile"] <= found["time"]["median"] <= found["time"]["upper quartile"]
            assert (found.get("seconds a token", {}).get("median", 1) > 0) and (
                ("seconds a token" in found) == (command == "decode")
            )
            assert found["sentences a second" if command == "decode" else "tokens a second"] > 0
            assert found["launched"]["operators"] > 0
        assert point["arms"][models[0]]["time"]["median"] == point["arms"][models[0]]["memory"] == 1
    table, forms = (out / "table.md").read_text(), (out / "dispatch.md").read_text()
    assert table in shown and table.count("\n| ") == len(points) * len(models)
    assert forms in shown and any(model.startswith("luna") for model in models) == (" | the device is cpu |" in forms)
    assert ("told so" in forms) == any("unfused" in model for model in models)
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG") and b"<svg" in (out / "curves.svg").read_bytes()
    if command != "train":
        return

    # again: nothing is measured twice, nor mixed with other settings
    before = (out / "results.json").read_bytes()
    assert table in benchmark(*words).stdout
    assert (out / "results.json").read_bytes() == before
    words[words.index("bf16")] = "fp32"
    assert "precision was 'bf16', now 'fp32': choose another --out" in benchmark(*words, fails=True).stderr


def test_the_loss_in_chunks_is_that_of_our_models():
    ours, theirs = [{}, {"user_dir": "fairseq_luna"}], [{}, {"user_dir": "tests"}]
    assert criterion_for(ours) == "chunked_label_smoothed_cross_entropy"
    assert criterion_for(theirs) == "label_smoothed_cross_entropy"


@pytest.mark.release
def test_memory_of_a_model_alone(tmp_path):
    """As a user measures it: in processes of their own, at sizes of their own."""
    words = ["operator", "--cpu", "--out", tmp_path, "--rounds", 1, "--dim", 32, "--heads", 2, "--points", "8:100"]
    shown = benchmark(*words, "--threads", 1, "--models", "naive", "fla-gsa", fails=True)
    assert "flash-linear-attention cannot be used" in shown.stdout and "fla-gsa; the reasons" in shown.stderr
    found = json.loads((tmp_path / "results.json").read_text())["points"][0]["arms"]
    assert found["naive"]["bytes"] > 0 and "error" in found["fla-gsa"]


def crew_of(command, *names, user_dir=None):
    """As on a GPU, with a line of progress that nobody sees and what that says."""
    args = Namespace(command=command, user_dir=user_dir, quick=True, cpu=True, threads=1, rounds=2, allocator="system")
    args.precision, said = "fp32", []
    line = Namespace(update=lambda steps=1: None, set_description=said.append)
    return Crew(args, [spec_of(name, args) for name in names], shared=True), line, said


@pytest.mark.release
def test_models_that_share_processes():
    """They are timed in one, counted in another, and both stay; one that fails takes no other along."""
    crew, line, said = crew_of("operator", "naive", "fla-gsa", "luna-5")
    sizes = {"dim": 32, "heads": 2, "slots": 5, "tokens": 20, "precision": "fp32", "seed": 1}
    ids = []
    for length in 5, 20:
        found = crew.measure({**sizes, "length": length}, line)
        assert "flash-linear-attention" in found["fla-gsa"]["error"]
        for name in "naive", "luna-5":
            assert found[name]["seconds"]["median"] > 0 and found[name]["launched"]["operators"] > 0
            assert found[name]["tokens a second"] > 0 and found[name]["bytes of the process"] > 0
        assert found["luna-5"]["forms"]["causal attention"]["form"] == "direct" and not found["naive"]["forms"]
        ids.append([one.process.pid for one in (*crew.timing.values(), *crew.counting.values())])
    assert ids[0] == ids[1] and len(set(ids[0])) == 2
    assert said[0] == "building naive" and "first steps of luna-5: kernels are compiled" in said

    # where a process dies, all its models say so, and there is another for the next point
    def die(text):
        if text == "one step of each in turn":
            next(iter(crew.timing.values())).process.kill()

    dead = Namespace(update=line.update, set_description=die)
    found = crew.measure({**sizes, "length": 5}, dead)
    assert all(found[name]["error"] == "killed by signal 9: out of memory?" for name in ("naive", "luna-5"))
    assert "seconds" in crew.measure({**sizes, "length": 5}, line)["naive"]
    crew.end()


@pytest.mark.release
def test_models_of_another_plugin_have_other_processes(tmp_path):
    """Both plugins have one name."""
    elsewhere = shutil.copytree(USER_DIR, tmp_path / USER_DIR.name)
    crew, line, _ = crew_of("train", "transformer", "luna-4", "arch:luna_transformer", user_dir=str(elsewhere))
    training = {"length": 8, "tokens": 16, "criterion": "label_smoothed_cross_entropy"}
    found = crew.measure({**QUICK, "dropout": 0.1, **training, "precision": "fp32", "seed": 1}, line)
    assert all("seconds" in one and "launched" in one for one in found.values()), found
    assert len(crew.timing) == len(crew.counting) == 2 and str(elsewhere) in crew.timing
    crew.end()


def gla(q, k, v, g_gamma, scale=None):
    """As flash-linear-attention's chunk_simple_gla: sum_j scale q_t k_j exp((t - j) gamma) v_j."""
    place = torch.arange(q.size(1))
    decay = torch.exp((place.unsqueeze(1) - place) * g_gamma.view(-1, 1, 1)).tril()
    weights = torch.einsum("bthd,bshd->bhts", q, k) * (scale or q.size(-1) ** -0.5) * decay
    return torch.einsum("bhts,bshd->bthd", weights, v), None


def test_what_is_compared_computes_the_same(monkeypatch):
    """Luna's attention with a decaying mean, once by the plugin and once by flash-linear-attention's product."""
    monkeypatch.setattr(operators, "of_fla", lambda module, name: gla)
    sizes = {"dim": 32, "heads": 2, "length": 9, "slots": 5}
    torch.manual_seed(1)

    def numbers(*shape):
        return torch.randn(shape, requires_grad=True)

    call, leaves = operators.simple_gla({}, sizes, 3, numbers)
    q, k, v, a = (x.transpose(1, 2) for x in leaves)
    want, _ = attend(q / 4, k, v, a, decay=head_decays(2, torch.device("cpu")).float())
    torch.testing.assert_close(call(), want.transpose(1, 2).flatten(2))


def test_operators_are_counted():
    """Not those that only look at numbers, nor those that leave the work to others."""
    x = torch.randn(4, 4, requires_grad=True)

    def step():
        y = torch.mm(x.t().view(4, 4), x)  # mm
        with torch.autograd.profiler.record_function(counting.OPTIMISER):
            torch.nn.functional.relu(y)  # its clamp_min, or itself

    assert counting.count(step, torch.device("cpu")) == {"operators": 2, "without the optimiser": 1}


class Event:
    """Of torch's profiler."""

    def __init__(self, name, device, us):
        self.name, self.device_type = name, getattr(torch.autograd.DeviceType, device)
        self.time_range = type("Range", (), {"elapsed_us": lambda _: us})()


def test_kernels_are_counted():
    """Not copies from the host, nor spans with a name; a graph of many is launched once."""
    events = [
        Event("cudaLaunchKernel", "CPU", 5),
        Event("cuLaunchKernelEx", "CPU", 5),
        Event("cudaGraphLaunch", "CPU", 5),
        Event("cudaDeviceSynchronize", "CPU", 5),
        Event("void gemm<float>", "CUDA", 1000),
        Event("_pack_forward", "CUDA", 300),
        Event("Memcpy HtoD (Pageable -> Device)", "CUDA", 100),
        Event("Memcpy DtoD (Device -> Device)", "CUDA", 100),
        Event("Optimizer.step#Adam.step", "CUDA", 5000),
    ]
    assert counting.of_gpu(events) == {"kernels": 3, "launches": 3, "gpu ms": 1.5}
    assert "| 1,000 | luna-16 | 2.00 s |" in tabulate(
        "operator", [{"length": 1000, "arms": {"luna-16": MEASURED}}], True
    )


MEASURED = {
    "seconds": {"median": 2.0},
    "tokens a second": 50.0,
    "launched": {"kernels": 3, "launches": 3, "gpu ms": 1.5},
    "bytes": 1 << 20,
}


@pytest.mark.parametrize(
    "words, message",
    [
        (["train", "--models", "luna-x"], "there is no model luna-x here: luna-L"),
        (["train", "--models", "luna-16-bf16"], "there is no model luna-16-bf16 here"),
        (["train", "--models", "arch:some_arch"], "arch:some_arch needs --user-dir"),
        release(["train", "--quick", "--models", "luna-0"], "--projection-length must be at least 1"),
        release(["train", "--quick", "--user-dir", "/no where", "--models", "arch:some_arch"], "/no where"),
        release(
            ["train", "--quick", "--dim", "30", "--heads", "4", "--models", "luna-4"],
            "--heads 4 does not divide --dim 30",
        ),
        (["train", "--vocab", "4"], "--vocab must be at least 5, of which four are special, but is 4"),
        (["train", "--points", "30"], "'30' is not LENGTH:TOKENS"),
        (["decode", "--rounds", "0"], "--rounds must be at least 1, but is 0"),
        (["train", "--models", "luna-16", "luna-16"], "--models names a model twice"),
        release(
            ["train", "--quick", "--precision", "fp16", "--models", "luna-4"], "fairseq trains in fp16 on a GPU alone"
        ),
        (["train", "--precision", "fp8"], "invalid choice: 'fp8'"),
        (["decode", "--precision", "fp16", "--models", "luna-16-int8"], "luna-16-int8 says its precision itself"),
        (["operator", "--models", "luna-16-plain"], "there is no model luna-16-plain here"),
        ([], "required"),
    ],
)
def test_bad_requests(words, message, tmp_path):
    words += ["--out", tmp_path / "out", "--cpu"] if words else []
    done = benchmark(*words, fails=True)
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
