"""The causal operators that scripts/benchmark.py measures alone: the product f, Luna's attention, and its kin."""

import importlib
from typing import Any, Callable, Dict, List, Tuple

from fairseq_luna.errors import Problem
from luna_tools.benchmark.workloads import Job, dtype_of

# what computes, and of which tensors gradients are taken
Call = Tuple[Callable[[], Any], List[Any]]


def operator(spec: Dict[str, Any], sizes: Dict[str, Any], device: Any) -> Job:
    """Forward and backward, in the dtype of the precision; the gradient of the output is given."""
    import torch

    rows = max(1, sizes["tokens"] // sizes["length"])

    def numbers(*shape: int) -> Any:
        return torch.randn(shape, device=device, dtype=dtype_of(sizes), requires_grad=True)

    call, leaves = KINDS[spec["kind"]](spec, sizes, rows, numbers)
    gradient: List[Any] = []

    def step() -> None:
        out = call()
        if not gradient:
            gradient.append(torch.randn_like(out))
        torch.autograd.grad(out, leaves, gradient[0])

    return Job(step, rows * sizes["length"])


def product(spec: Dict[str, Any], sizes: Dict[str, Any], rows: int, numbers: Any) -> Call:
    """f of the paper's section 3.3, x and y of d channels, z of --slots."""
    form = importlib.import_module(f"fairseq_luna.ops.causal.{spec['form']}")
    function = getattr(form, f"{spec['form']}_causal_product")
    shape = (rows, sizes["heads"], sizes["length"])
    x, y = (numbers(*shape, sizes["dim"] // sizes["heads"]) for _ in range(2))
    z = numbers(*shape, sizes["slots"])
    decay = decays(sizes, x.device) if spec["decaying"] else None
    return lambda: function(x, y, z, decay=decay)[0], [x, y, z]


def applied(tensor: Any) -> Callable[[Any], Any]:
    """A projection that has this result."""
    return lambda _: tensor


def luna(spec: Dict[str, Any], sizes: Dict[str, Any], rows: int, numbers: Any) -> Call:
    """Luna's causal attention between its projections, in the form that the plugin chooses or without kernels."""
    from fairseq_luna.ops import dispatch
    from fairseq_luna.ops.causal.attention import Projections, causal_attention
    from fairseq_luna.ops.projection import Projection

    class Projected(Projections):
        """Projections of a tensor that already holds their results."""

        def together(self, x: Any) -> Any:
            return x

    dim, count = sizes["dim"], 4 if spec["untied"] else 3
    projected = numbers(rows, sizes["length"], count * dim)
    pack_query = numbers(rows, sizes["heads"], spec["slots"], dim // sizes["heads"])
    decay = decays(sizes, pack_query.device) if spec["decaying"] else None

    def call() -> Any:
        query, key, *value, pack_key = (Projection(prepared=applied(part)) for part in projected.chunk(count, -1))
        projections = Projected(query, key, value[0] if value else None, pack_key)
        with dispatch.using(fused=False if spec["unfused"] else None):
            return causal_attention(projected, pack_query, projections, "softplus", decay=decay)

    return call, [projected, pack_query]


def sdpa(spec: Dict[str, Any], sizes: Dict[str, Any], rows: int, numbers: Any) -> Call:
    """Softmax attention by torch's fused kernels."""
    import torch

    if not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        raise Problem(f"torch {torch.__version__} has no fused attention: leave that model out")
    tensors = [numbers(rows, sizes["length"], sizes["dim"]) for _ in range(3)]

    def call() -> Any:
        q, k, v = (x.unflatten(2, (sizes["heads"], -1)).transpose(1, 2) for x in tensors)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).flatten(2)

    return call, tensors


def gated_slots(spec: Dict[str, Any], sizes: Dict[str, Any], rows: int, numbers: Any) -> Call:
    """flash-linear-attention's gated slot attention with a gate that lets nothing go: two sums and a softmax."""
    import torch

    chunk_gsa = of_fla("gsa", "chunk_gsa")
    q, k, v, s = by_head(sizes, rows, numbers)
    gate = torch.zeros(s.shape, device=s.device)
    return lambda: chunk_gsa(q, k, v, s, gate)[0].flatten(2), [q, k, v, s]


def simple_gla(spec: Dict[str, Any], sizes: Dict[str, Any], rows: int, numbers: Any) -> Call:
    """Luna's attention with a decaying mean, from pack weights on, by flash-linear-attention's simple GLA, twice."""
    import torch

    chunk_simple_gla = of_fla("simple_gla", "chunk_simple_gla")
    q, k, v, a = by_head(sizes, rows, numbers)
    decay = decays(sizes, q.device)
    powers = decay ** torch.arange(sizes["length"], device=q.device).unsqueeze(1)
    share = (1 / powers.cumsum(0)).to(q.dtype).unsqueeze(-1)  # 1 / w_t, (n, H, 1)
    gamma = decay.log().float()

    def call() -> Any:
        logits = chunk_simple_gla(q, k, a, g_gamma=gamma)[0] * share
        out = chunk_simple_gla(logits.softmax(-1), a, v, g_gamma=gamma, scale=1.0)[0] * share
        return out.flatten(2)

    return call, [q, k, v, a]


def of_fla(module: str, name: str) -> Callable[..., Any]:
    try:
        return getattr(importlib.import_module(f"fla.ops.{module}"), name)
    except ImportError as error:
        raise Problem(
            f"flash-linear-attention cannot be used ({error}): `pip install fla-core`, or leave that model out"
        ) from None


def by_head(sizes: Dict[str, Any], rows: int, numbers: Any) -> List[Any]:
    """q, k and v, (B, n, H, d), and weights of --slots, (B, n, H, l)."""
    shape = (rows, sizes["length"], sizes["heads"])
    return [*(numbers(*shape, sizes["dim"] // sizes["heads"]) for _ in range(3)), numbers(*shape, sizes["slots"])]


def decays(sizes: Dict[str, Any], device: Any) -> Any:
    from fairseq_luna.modules.causal_attention import head_decays

    return head_decays(sizes["heads"], device)


KINDS = {"product": product, "luna": luna, "sdpa": sdpa, "fla-gsa": gated_slots, "fla-simple-gla": simple_gla}
