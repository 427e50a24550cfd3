"""The paper's learning rate, as --lr-scheduler milestone: warm-up, then a fall at each milestone."""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Any, List

from fairseq.dataclass import FairseqDataclass
from fairseq.optim.lr_scheduler import FairseqLRScheduler, register_lr_scheduler
from omegaconf import II


@dataclass
class MilestoneConfig(FairseqDataclass):
    """Settings of `--lr-scheduler milestone`."""

    warmup_updates: int = field(
        default=0, metadata={"help": "number of updates over which the learning rate rises to --lr"}
    )
    warmup_init_lr: float = field(
        default=0.0, metadata={"help": "learning rate of the first update, from which the warm-up rises"}
    )
    milestones: List[int] = field(
        default_factory=list, metadata={"help": "updates after which the learning rate falls, e.g. 300000,450000"}
    )
    lr_decay_rate: float = field(default=0.1, metadata={"help": "factor of the learning rate at each milestone"})
    lr: List[float] = II("optimization.lr")


@register_lr_scheduler("milestone", dataclass=MilestoneConfig)
class MilestoneSchedule(FairseqLRScheduler):
    """A learning rate that depends on the number of updates alone.

    Raises:
        ValueError: if the settings make no such schedule.
    """

    def __init__(self, cfg: Any, optimizer: Any):
        super().__init__(cfg, optimizer)
        if len(cfg.lr) != 1:
            raise ValueError(
                f"--lr-scheduler milestone takes one --lr, but got {list(cfg.lr)}; "
                "say by --milestones and --lr-decay-rate how it changes."
            )
        lr, warmup, start, rate = cfg.lr[0], cfg.warmup_updates, cfg.warmup_init_lr, cfg.lr_decay_rate
        milestones = list(cfg.milestones)
        for name, value, good, want in (
            ("--warmup-updates", warmup, warmup >= 0, "at least 0"),
            ("--warmup-init-lr", start, 0 <= start <= lr, f"from 0 to --lr {lr}"),
            ("--lr-decay-rate", rate, 0 < rate <= 1, "in (0, 1]"),
            ("--milestones", milestones, milestones != [], "given, e.g. 300000,450000"),
            ("--milestones", milestones, milestones == sorted({*milestones}), "rising"),
        ):
            if not good:
                raise ValueError(f"{name} must be {want}, but is {value}.")
        if milestones[0] <= warmup:
            raise ValueError(f"The first of --milestones, {milestones[0]}, must come after --warmup-updates {warmup}.")
        self.milestones = milestones
        self.step_update(0)

    def step_update(self, num_updates: int) -> float:
        """Sets the learning rate of the update that follows `num_updates` done ones.

        So update number `milestone + 1` is the first with the lower rate, as in torch's MultiStepLR.
        """
        warmup, start, (lr,) = self.cfg.warmup_updates, self.cfg.warmup_init_lr, self.cfg.lr
        if num_updates < warmup:
            lr = start + (lr - start) * num_updates / warmup
        else:
            lr *= self.cfg.lr_decay_rate ** bisect_right(self.milestones, num_updates)
        self.optimizer.set_lr(lr)
        return lr
