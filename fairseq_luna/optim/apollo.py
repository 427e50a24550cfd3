"""The paper's optimiser: Apollo (arXiv 2009.13586), and its registration as --optimizer apollo."""

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Optional

import torch
from fairseq import utils
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II
from torch import Tensor

REBOUNDS = ["constant", "belief"]
WEIGHT_DECAY_TYPES = ["L2", "decoupled", "stable"]
CLIP_MODES = ["total", "each"]
SIGMA = 0.01  # the smallest curvature under the constant rebound

Rebound = ChoiceEnum(REBOUNDS)
WeightDecayType = ChoiceEnum(WEIGHT_DECAY_TYPES)
ClipMode = ChoiceEnum(CLIP_MODES)


class Apollo(torch.optim.Optimizer):
    """Adaptive parameter-wise diagonal quasi-Newton method (arXiv 2009.13586, algorithm 1).

    Norms and means run over each parameter tensor, so that parameters must not be joined or split. In half precision
    the state is kept in float32.

    Args:
        params: tensors, or dictionaries of groups.
        lr: eta, the learning rate; it should be warmed up, and is of the order of 0.1.
        beta: of the running mean of gradients, in [0, 1).
        eps: added to norms.
        rebound: the smallest curvature: "constant", or "belief", the largest surprise of the gradient.
        weight_decay: its factor.
        weight_decay_type: "L2" adds to the gradient, "decoupled" to the step, "stable" to the step as well but
            divided by the mean curvature.

    Raises:
        ValueError: if a setting is out of its range.
    """

    supports_memory_efficient_fp16 = True  # asked for by fairseq; so is supports_flat_params, which does not hold

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        beta: float = 0.9,
        eps: float = 1e-4,
        rebound: str = "constant",
        weight_decay: float = 0.0,
        weight_decay_type: str = "L2",
    ):
        for name, value, good, want in (
            ("lr", lr, lr >= 0, "at least 0"),
            ("beta", beta, 0 <= beta < 1, "in [0, 1)"),
            ("eps", eps, eps > 0, "above 0"),
            ("rebound", rebound, rebound in REBOUNDS, " or ".join(REBOUNDS)),
            ("weight_decay", weight_decay, weight_decay >= 0, "at least 0"),
            (
                "weight_decay_type",
                weight_decay_type,
                weight_decay_type in WEIGHT_DECAY_TYPES,
                " or ".join(WEIGHT_DECAY_TYPES),
            ),
        ):
            if not good:
                raise ValueError(f"Apollo's {name} must be {want}, but is {value}.")
        super().__init__(
            params,
            {
                "lr": lr,
                "beta": beta,
                "eps": eps,
                "rebound": rebound,
                "weight_decay": weight_decay,
                "weight_decay_type": weight_decay_type,
            },
        )

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """Makes one step, and returns what the closure, if there is one, returned.

        Raises:
            RuntimeError: if a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p.grad.is_sparse:
                    raise RuntimeError(
                        "Apollo does not support sparse gradients, since it takes norms over whole parameters; "
                        "use an embedding without sparse=True."
                    )
                theta = p.float() if p.dtype in (torch.float16, torch.bfloat16) else p
                update(theta, p.grad.to(theta.dtype), self.state[p], group)
                if theta is not p:
                    p.copy_(theta)
        return loss


def update(theta: Tensor, g: Tensor, state: Dict[str, Any], group: Dict[str, Any]) -> None:
    """One step of one parameter, in place, in the letters of algorithm 1. No value leaves the device.

    What the paper leaves open follows the authors' runs (tests/data/README.md): the learning rate is no part of d, so
    that warm-up leaves m and B alone; weight decay other than L2 is part of d, and so of the next B; eps counts in
    units of SIGMA under the constant rebound; the belief is |g - m| at its largest, over m before this step, and
    eps / alpha is added to D beside it.
    """
    beta, eps, weight_decay = group["beta"], group["eps"], group["weight_decay"]
    decay_type, belief = group["weight_decay_type"], group["rebound"] == "belief"
    if not state:
        state.update(step=0, m=torch.zeros_like(theta), B=torch.zeros_like(theta), d=torch.zeros_like(theta))
    for name in "mBd":  # fairseq's half precision optimizers load a state where and as it was saved
        state[name] = state[name].to(theta)
    m, B, d = state["m"], state["B"], state["d"]
    state["step"] += 1

    if decay_type == "L2":
        g = g.add(theta, alpha=weight_decay)

    # m' = (beta (1 - beta^t) m + (1 - beta) g) / (1 - beta^(t+1)), which is m + y
    surprise = g - m
    alpha = (1 - beta) / (1 - beta ** state["step"])
    y = alpha * surprise
    m.add_(y)

    # B' = B - (d^T y + d^T B d) / (|d|_4 + eps)^4 d^2
    norm = d.norm(p=4) + (eps if belief else eps / SIGMA)
    u = d / norm
    B.sub_(((u * y).sum() / norm + (u * B * u).sum()) * u * u)

    # d = m' / D, where D = rectify(B')
    if belief:
        D = torch.maximum(B.abs(), surprise.abs().max()) + eps / alpha
    else:
        D = B.abs().clamp(min=SIGMA)
    torch.div(m, D, out=d)
    if decay_type == "decoupled":
        d.add_(theta, alpha=weight_decay)
    elif decay_type == "stable":
        d.addcdiv_(theta, D.mean(), value=weight_decay)

    theta.sub_(d, alpha=group["lr"])


@dataclass
class FairseqApolloConfig(FairseqDataclass):
    """Settings of `--optimizer apollo`; the defaults are the paper's."""

    apollo_beta: float = field(
        default=0.9, metadata={"help": "weight of the past in the running mean of gradients, in [0, 1)"}
    )
    apollo_eps: float = field(default=1e-4, metadata={"help": "added to norms, so that nothing is divided by zero"})
    rebound: Rebound = field(  # type: ignore[valid-type]
        default="constant",
        metadata={"help": "the smallest curvature: constant, or belief, the largest surprise of the gradient"},
    )
    weight_decay: float = field(default=0.0, metadata={"help": "factor of the weight decay"})
    weight_decay_type: WeightDecayType = field(  # type: ignore[valid-type]
        default="L2",
        metadata={
            "help": "what the weight decay is added to: the gradient (L2), the step (decoupled), or the step over the "
            "mean curvature (stable)"
        },
    )
    clip_mode: ClipMode = field(  # type: ignore[valid-type]
        default="total",
        metadata={
            "help": "what --clip-norm limits: the norm of the total gradient, or of the gradient of each parameter"
        },
    )
    lr: List[float] = II("optimization.lr")
    # which wrapper fairseq puts around the optimizer
    fp16: bool = II("common.fp16")
    bf16: bool = II("common.bf16")
    amp: bool = II("common.amp")
    memory_efficient_fp16: bool = II("common.memory_efficient_fp16")
    memory_efficient_bf16: bool = II("common.memory_efficient_bf16")
    fp16_no_flatten_grads: bool = II("common.fp16_no_flatten_grads")


@register_optimizer("apollo", dataclass=FairseqApolloConfig)
class FairseqApollo(FairseqOptimizer):
    """Apollo for fairseq.

    Raises:
        ValueError: if fairseq's half precision would make something else of the optimizer or of the clipping.
    """

    def __init__(self, cfg: Any, params: Iterable[Any]):
        super().__init__(cfg)
        # as in fairseq's Trainer._build_optimizer
        memory_efficient = cfg.memory_efficient_fp16 or cfg.memory_efficient_bf16
        half = (cfg.fp16 or cfg.bf16) and (memory_efficient or not cfg.amp)
        if half and not (memory_efficient or cfg.bf16 or cfg.fp16_no_flatten_grads):
            raise ValueError(
                "--optimizer apollo takes norms over each parameter, but --fp16 joins all parameters into one; "
                "add --fp16-no-flatten-grads, or use --bf16 in place of --fp16."
            )
        if half and cfg.clip_mode == "each":
            raise ValueError(
                "--clip-mode each does not go with --fp16 or --bf16, where fairseq clips the whole gradient itself; "
                "use --clip-mode total, or train in float32 or with --amp."
            )
        self._optimizer = Apollo(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> Dict[str, Any]:
        """The arguments of `Apollo`."""
        return {
            "lr": self.cfg.lr[0],
            "beta": self.cfg.apollo_beta,
            "eps": self.cfg.apollo_eps,
            "rebound": str(self.cfg.rebound),
            "weight_decay": self.cfg.weight_decay,
            "weight_decay_type": str(self.cfg.weight_decay_type),
        }

    def load_state_dict(self, state_dict: Dict[str, Any], optimizer_overrides: Optional[Dict[str, Any]] = None) -> None:
        """Called by fairseq on resuming.

        Raises:
            ValueError: if the state is another optimizer's, which fairseq itself notices in float32 alone.
        """
        if any("rebound" not in group for group in state_dict["param_groups"]):
            raise ValueError(
                "The checkpoint was trained with another optimizer than apollo: "
                "add --reset-optimizer to go on from its model alone."
            )
        super().load_state_dict(state_dict, optimizer_overrides)

    def clip_grad_norm(self, max_norm: float, aggregate_norm_fn: Optional[Callable] = None) -> Tensor:
        """Clips gradients as --clip-mode says, and returns the norm that the whole gradient had."""
        if self.cfg.clip_mode == "total":
            return super().clip_grad_norm(max_norm, aggregate_norm_fn)
        norm = super().clip_grad_norm(0, aggregate_norm_fn)
        if max_norm > 0:
            for p in self.params:
                utils.clip_grad_norm_(p, max_norm)
        return norm
