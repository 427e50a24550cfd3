"""The loss of a projection by a few rows at a time is fairseq's, in values and gradients."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss

from fairseq_luna.ops import cross_entropy as module
from fairseq_luna.ops import dispatch
from fairseq_luna.ops.cross_entropy import cross_entropy

pytestmark = pytest.mark.stock
PAD, WORDS, DIM = 1, 50, 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
gpu = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cpu", reason="there is no CUDA device")]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
float16 = pytest.mark.skipif(
    DEVICE == "cpu" and torch.__version__ < (2,), reason="torch 1 has no products in float16 on a CPU"
)
dtypes = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float16, marks=float16)], ids=str
)


@pytest.fixture(
    params=[False, pytest.param(True, marks=pytest.mark.skipif(not find_spec("triton"), reason="there is no Triton"))],
    ids=["equation", "kernel"],
)
def kernel(request):
    """On a CPU in Triton's interpreter."""
    dispatch.forget_forms()
    with dispatch.using(fused=request.param):
        yield
    assert dispatch.forms()["cross entropy"].form == ("fused" if request.param else "direct")


@pytest.fixture(params=[1, 7, 10**6], ids="{} rows at once".format)
def few_rows(request, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", dict.fromkeys(module.AT_ONCE, request.param * WORDS))


def fairseqs(x, weight, target, smoothing=0.0, ignored=None):
    logits = F.linear(x, weight)
    return label_smoothed_nll_loss(logits.log_softmax(-1, dtype=torch.float64), target, smoothing, ignored)


def with_padding_left_in(*given):
    """As on a GPU."""
    return module._loss(*given, True)


def inputs(rows, dtype=torch.float64, words=WORDS, scale=1.0):
    torch.manual_seed(rows)
    target = torch.randint(4, words, (rows,))
    target[::3] = PAD
    x, weight = (torch.randn(n, DIM, dtype=torch.float64) for n in (rows, words))
    return [(scale * x).to(DEVICE, dtype), (weight / DIM**0.5).to(DEVICE, dtype), target.to(DEVICE)]


def values_and_gradients(function, x, weight, *rest, scale=1.0):
    x, weight = (u.detach().clone().requires_grad_() for u in (x, weight))
    loss, nll = function(x, weight, *rest)
    (loss * scale).backward()
    return [loss.detach(), nll.detach(), x.grad / scale, weight.grad / scale]


def assert_close(got, expected, tolerance):
    for one, other in zip(got, expected):
        assert one.shape == other.shape
        torch.testing.assert_close(one.to(other), other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ignored", [None, PAD])
@pytest.mark.parametrize("rows", [1, 2, 21])
@pytest.mark.parametrize("function", [cross_entropy, with_padding_left_in])
def test_fairseqs_loss(few_rows, function, rows, ignored, smoothing):
    given = [*inputs(rows), smoothing, ignored]
    assert_close(values_and_gradients(function, *given), values_and_gradients(fairseqs, *given), 1e-12)


def assert_close_to_float64(dtype, rows, words=WORDS, function=cross_entropy):
    """In float16 the loss is scaled, as fairseq's optimizer does."""
    x, weight, target = inputs(rows, dtype, words)
    scale = 128.0 if dtype == torch.float16 else 1.0
    got = values_and_gradients(function, x, weight, target, 0.1, PAD, scale=scale)
    expected = values_and_gradients(fairseqs, x.double(), weight.double(), target, 0.1, PAD)
    assert got[2].dtype == got[3].dtype == dtype and got[0].dtype == torch.float32
    assert_close(got, expected, TOLERANCE[dtype])


@dtypes
@pytest.mark.parametrize("function", [cross_entropy, with_padding_left_in])
def test_precisions(dtype, function, few_rows, kernel):
    assert_close_to_float64(dtype, 21, function=function)


def error(got, expected):
    return float((got.double() - expected).norm() / expected.norm())


def in_this_precision(x, weight, target, smoothing, ignored):
    """fairseq's loss, whose log-softmax is in float32."""
    log_probs = F.linear(x, weight).log_softmax(-1, dtype=torch.float32)
    return label_smoothed_nll_loss(log_probs, target, smoothing, ignored)


@dtypes
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("sure", [1, 10, 20])
def test_gradients_of_a_sure_model_are_as_exact_as_fairseqs(dtype, smoothing, sure, kernel):
    """The right word's is a small difference then: of 1 and a probability near it."""
    x, weight, target = inputs(60, torch.float64)
    x = (sure * F.normalize(weight)[target] + 0.02 * x).to(dtype)
    given = x, weight.to(dtype), target, smoothing, PAD
    exact = values_and_gradients(fairseqs, x.double(), weight.to(dtype).double(), *given[2:])
    scale = 128.0 if dtype == torch.float16 else 1.0
    ours, theirs = (values_and_gradients(f, *given, scale=scale) for f in (cross_entropy, in_this_precision))
    for got, rough, right in zip(ours[2:], theirs[2:], exact[2:]):
        assert error(got, right) <= 2 * error(rough, right) + 1e-5


@pytest.mark.parametrize("ignored", [-100, WORDS])
def test_what_is_ignored_need_not_be_a_word(ignored, kernel):
    x, weight, target = inputs(21, torch.float32)
    want = values_and_gradients(fairseqs, x, weight, target, 0.1, PAD)
    target = target.masked_fill(target == PAD, ignored)
    for function in cross_entropy, with_padding_left_in:
        assert_close(values_and_gradients(function, x, weight, target, 0.1, ignored), want, 1e-5)


@pytest.mark.parametrize("words", [15, 16, 17, 64])
def test_blocks_of_a_kernel(words, kernel, monkeypatch):
    if find_spec("triton"):
        monkeypatch.setattr("fairseq_luna.ops.triton.cross_entropy.BLOCK", 16)
    assert_close_to_float64(torch.float32, 21, words)


@dtypes
@pytest.mark.parametrize("words", [pytest.param(words, marks=gpu) for words in (32000, 32001, 32008)])
def test_a_large_vocabulary(dtype, words, kernel):
    assert_close_to_float64(dtype, 5000, words)


@float16
def test_float16_neither_loses_rare_words_nor_overflows_for_common_ones(kernel):
    """Words from the tenth on have probabilities that float16 takes for 0. Half of 1,000 rows have one right word."""
    x, weight, target = inputs(1000, torch.float16, scale=0.2)
    x[:, 0], weight[:, 0] = 4.0, 0.0
    weight[10:, 0] = -4.0
    target[:] = torch.randint(4, 10, target.shape)
    target[::2] = 4
    got = values_and_gradients(cross_entropy, x, weight, target)
    expected = values_and_gradients(fairseqs, x.double(), weight.double(), target)
    assert expected[3].abs().max() > 500 and x.double().mm(weight.double().t()).softmax(-1)[:, 10:].max() < 2.0**-23
    assert_close(got, expected, TOLERANCE[torch.float16])
    assert_close([got[3][10:]], [expected[3][10:]], 1e-2)  # beside the largest of the rare ones


@float16
def test_float16_overflows_in_no_small_vocabulary_of_many_rows():
    """Of 40,000 rows all have one right word, which the model takes for impossible."""
    x, weight, target = inputs(40000, torch.float16, words=20, scale=0.0)
    x[:, 0], weight[:, 0] = 12.0, 0.5
    weight[4, 0] = -0.5
    target[:] = 4
    x, weight = (u.requires_grad_() for u in (x, weight))
    loss, _ = cross_entropy(x, weight, target)
    (loss / 16).backward()  # fairseq's optimizer finds such a scale
    torch.testing.assert_close(weight.grad[4, 0].float(), torch.tensor(-12 * 40000 / 16.0), rtol=1e-2, atol=0)


def test_without_gradients(kernel):
    given = [*inputs(21, torch.float32), 0.1, PAD]
    assert_close(cross_entropy(*given), fairseqs(*given), 1e-5)
    x = given[0].requires_grad_()
    with torch.no_grad():
        loss, _ = cross_entropy(*given)
    assert not loss.requires_grad
    loss, nll = cross_entropy(*given)
    assert loss.requires_grad and not nll.requires_grad
    loss.backward()
    assert x.grad is not None and given[1].grad is None  # a frozen projection


@pytest.mark.parametrize("function", [cross_entropy, with_padding_left_in])
@pytest.mark.parametrize("rows", [0, 5])
def test_nothing_to_predict(rows, function):
    """Rows of padding alone, or none."""
    x, weight, target = inputs(rows)
    got = values_and_gradients(function, x, weight, torch.full_like(target, PAD), 0.1, PAD)
    assert all(not u.any() for u in got) and got[2].shape == x.shape


def test_autocast_takes_the_dtype_of_other_products():
    x, weight, target = inputs(21, torch.float32)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = values_and_gradients(cross_entropy, x, weight, target, 0.1, PAD)
    expected = values_and_gradients(cross_entropy, x.bfloat16(), weight.bfloat16(), target, 0.1, PAD)
    assert got[2].dtype == torch.float32
    assert_close([u.float() for u in got], [u.float() for u in expected], 0)
