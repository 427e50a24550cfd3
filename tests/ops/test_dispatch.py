"""Which form an operator takes, and why."""

import os
import subprocess
import sys

import pytest
import torch
from tiny import build, sentences, targets

from fairseq_luna.ops import dispatch

pytestmark = pytest.mark.stock


def why(x, slots=5, dropout=0.0, operator="pack", **rest):
    return dispatch.why_not_fused(operator, dispatch.Work(x, 2, slots, dropout, **rest))


def test_a_cpu_goes_the_plain_way_and_says_so():
    assert why(torch.zeros(1, 2, 32)) == "the device is cpu"
    model = build()
    model(sentences([5]), None, targets([4]))
    ran = {dispatch.forms()[name] for name in ("pack", "unpack", "causal attention")}
    assert ran == {dispatch.Chosen("direct", "the device is cpu")}


@pytest.mark.parametrize("moved", [True, False])
def test_projections_are_moved_as_told(moved):
    model = build()
    with dispatch.using(moved=moved):
        model(sentences([5]), None, targets([4]))
    ran = {dispatch.forms()[name].form for name in ("pack", "unpack", "pack logits")}
    assert ran == {"moved" if moved else "direct"}


def test_the_environment_turns_kernels_off(monkeypatch):
    monkeypatch.setenv("FAIRSEQ_LUNA_FUSED", "0")
    assert why(torch.zeros(1, 2, 32)) == "FAIRSEQ_LUNA_FUSED=0"


def test_what_no_kernel_takes():
    pytest.importorskip("triton")
    x = torch.zeros(1, 2, 32)
    with dispatch.using(fused=True):
        assert why(x) is None
        assert why(x.double()) == "the dtype is float64"
        assert why(x[..., :16]) == "the head size is 8"
        assert why(x, slots=129) == "there are 129 slots"
        assert why(x, unfusable="its weights are read") == "its weights are read"
        assert why(x[:0]) == why(x, dropout=1.0) == "nothing is left to compute"
        with dispatch.using(fused=False):
            assert why(x) == "told so"
        assert why(x) is None


def test_without_triton_all_runs_as_ever():
    """In a process of its own, since what is imported stays."""
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from fairseq_luna.ops import dispatch\n"
        "with dispatch.using(fused=True):\n"
        "    print(dispatch.why_not_fused('pack', dispatch.Work(torch.zeros(1, 2, 32), 2, 5)))\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "Triton is not installed\n", done.stderr


def failing(x):
    raise RuntimeError("PassManager::run failed\nat a line")


def test_a_kernel_that_does_not_compile_is_told_once():
    x = torch.zeros(1, 2, 32)
    with pytest.warns(UserWarning, match="plain form of op A runs.*PassManager::run failed.*FAIRSEQ_LUNA_FUSED=0"):
        assert dispatch.attempt("op A", "kind", failing, x) is None
    assert dispatch.attempt("op A", "kind", failing, x) is None  # without a warning: here they are errors
    pytest.importorskip("triton")
    with dispatch.using(fused=True):
        assert "PassManager" in why(x, operator="op A")


def test_a_kernel_of_another_kind_goes_on():
    """Activation checkpointing has run it before, and is to run the same again."""
    x = torch.zeros(1, 2, 32)
    assert torch.equal(dispatch.attempt("op B", "kind", torch.exp, x), x + 1)
    with pytest.warns(UserWarning):
        assert dispatch.attempt("op B", "another", failing, x) is None
    assert dispatch.attempt("op B", "another", failing, x) is None
    assert torch.equal(dispatch.attempt("op B", "kind", torch.exp, x), x + 1)


def test_a_kernel_whose_gradients_do_not_compile_does_not_run():
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x + 1

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("ptxas fatal")

    x = torch.zeros(1, 2, 32)
    with pytest.warns(UserWarning, match="ptxas fatal"):
        assert dispatch.attempt("op C", "kind", Half.apply, x) is None
    with torch.no_grad():
        assert dispatch.attempt("op D", "kind", Half.apply, x) is not None


def test_too_little_memory_is_not_the_compilers_fault():
    def large(x):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(RuntimeError, match="out of memory"):
        dispatch.attempt("op E", "kind", large, torch.zeros(1))


def test_turns():
    device = torch.device("cpu")
    first, one, two = dispatch.turn(device), torch.tensor([1]), torch.tensor([2])
    assert first.tolist() == [0] and first.dtype == torch.int32
    with dispatch.turning(one):
        with dispatch.turning(two):
            assert dispatch.turn(device) is two
        assert dispatch.turn(device) is one
    assert dispatch.turn(device) is first


def test_seeds_follow_the_generator():
    torch.manual_seed(1)
    first = dispatch.seed(0.1), dispatch.seed(0.1)
    torch.manual_seed(1)
    assert (dispatch.seed(0.1), dispatch.seed(0.1)) == first and first[0] != first[1]
    state = torch.get_rng_state()
    assert dispatch.seed(0.0) == 0 and torch.equal(torch.get_rng_state(), state)
