"""Products with weights for generation on a CPU: laid out once for all steps, in 32, 16 or 8 bits."""

import warnings
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def fp32_product(weight: Tensor, bias: Optional[Tensor]) -> Product:
    """The product in float32, with weights in the order in which oneDNN reads them."""
    return _packed(weight, bias, torch.float32)


def bf16_product(weight: Tensor, bias: Optional[Tensor]) -> Product:
    """Weights and inputs in bfloat16, summed in float32; fast on processors that have instructions for it."""
    return _packed(weight, bias, torch.bfloat16)


def int8_product(weight: Tensor, bias: Optional[Tensor]) -> Product:
    """Weights in 8 bits with a scale for each output, inputs with one scale a call (torch's dynamic quantisation)."""
    scales = weight.abs().amax(dim=1).clamp(min=1e-8).double() / 127
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with _quantisation_engine(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 announces that its quantised tensors will move to torchao
        quantised = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantised, bias)
    # without these instructions sums of 16 bits could overflow with all 8 bits of the inputs
    vnni = any(getattr(torch.cpu, name, bool)() for name in ("_is_vnni_supported", "_is_cpu_support_vnni"))
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, not vnni)


PRODUCTS: Dict[str, Callable[[Tensor, Optional[Tensor]], Product]] = {
    "fp32": fp32_product,
    "bf16": bf16_product,
    "int8": int8_product,
}


def _packed(weight: Tensor, bias: Optional[Tensor], dtype: torch.dtype) -> Product:
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    try:
        # what torch's own compiler makes of a frozen linear layer
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        product = torch.ops.mkldnn._linear_pointwise
    except (AttributeError, RuntimeError):  # before torch 2.0, or without oneDNN
        return lambda x: F.linear(x.to(dtype), weight, bias).to(x.dtype)
    return lambda x: product(x.to(dtype), packed, bias, "none", [], "").to(x.dtype)


@contextmanager
def _quantisation_engine() -> Iterator[None]:
    """oneDNN for what is packed within, where torch has it: the fastest of its engines here."""
    before = torch.backends.quantized.engine
    if "onednn" in torch.backends.quantized.supported_engines:
        torch.backends.quantized.engine = "onednn"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before
