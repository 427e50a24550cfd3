"""Where the gradient of a training arrives: its norm by module, over some training batches with dropout off.

Rows are, for one batch and then the mean of all,

  loss               as in training, smoothed, in nats per token
  reaches the source norm of the gradient at the embeddings of the source, by all ways
  tells apart        share of its square that is left when the mean over the positions of each sentence is taken away:
                     what could tell one source word from another

and the norm of the gradient by module. --start looks at the same models with the parameters that their seed made."""

import argparse
import re
from itertools import islice
from pathlib import Path
from typing import Any, Dict, List

from fairseq_luna.errors import Problem
from fairseq_luna.files import write_json
from fairseq_luna.generation.places import find
from luna_tools.console import count
from luna_tools.machine import import_plugin

# the first that matches names the module
MODULES = [
    (r"embed", "embeddings"),
    (r"norm", "norms"),
    (r"^encoder\.layers\.\d+\.self_attn\.pack\.", "packs of the encoder"),
    (r"^encoder\.layers\.\d+\.self_attn\.", "encoder's attention but its packs"),
    (r"^encoder\.layers\.", "encoder's feed-forward"),
    (r"^encoder\.memory\.layers\.\d+\.pack\.", "packs of the cross attention"),
    (r"^encoder\.memory\.layers\.\d+\.causal_query\.", "decoder's self-attention"),
    (
        r"^encoder\.memory\.|^decoder\.layers\.\d+\.(encoder|cross)_attn\.[kv]_proj\.",
        "keys and values of the cross attention",
    ),
    (r"^decoder\.layers\.\d+\.(encoder|cross)_attn\.", "query and output of the cross attention"),
    (r"^decoder\.layers\.\d+\.self_attn\.", "decoder's self-attention"),
    (r"^decoder\.layers\.", "decoder's feed-forward"),
    (r"", "the rest"),
]
NO_DROPOUT = dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "word_dropout"), 0.0)


def main() -> None:
    args = parse_args()
    import_plugin()
    found = {str(folder): measure(folder, args.batches, args.start) for folder in args.model}
    rows = ["loss", "reaches the source", "tells apart", *dict.fromkeys(name for _, name in MODULES)]
    print(f"| {'at the start' if args.start else 'as trained'} | {' | '.join(found)} |")
    print("|---" * (len(found) + 1) + "|")
    for row in rows:
        cells = [f"{means[row]:.4f}" if row in means else "" for means in found.values()]
        if any(cells):
            print(f"| {row} | {' | '.join(cells)} |")
    if args.out:
        write_json(args.out, {"batches": args.batches, "start": args.start, "means": found})


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gradients.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", required=True, nargs="+", type=Path, metavar="DIR", help="what quickstart.sh or train.sh wrote"
    )
    parser.add_argument("--batches", type=count, default=8, metavar="N", help="default %(default)s")
    parser.add_argument("--start", action="store_true", help="with the parameters before training")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures there too, as JSON")
    return parser.parse_args()


def measure(folder: Path, batches: int, start: bool) -> Dict[str, float]:
    """The rows of one model, see the top of this file."""
    from fairseq import checkpoint_utils, utils

    place = find(folder)
    (model,), cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(place.checkpoint)], {"data": str(place.dictionaries), **NO_DROPOUT}
    )
    if start:
        if cfg.checkpoint.finetune_from_model:
            begin = cfg.checkpoint.finetune_from_model
            raise Problem(f"{folder} did not start from its seed, but from {begin}: look at that with --model")
        utils.set_torch_seed(cfg.common.seed)
        model = task.build_model(cfg.model)
    model.train()  # at rest, fairseq's layers may take other ways, without gradients
    criterion = task.build_criterion(cfg.criterion)
    task.load_dataset("train")
    batches_of_seed = task.get_batch_iterator(
        task.dataset("train"),
        max_tokens=cfg.dataset.max_tokens,
        max_sentences=cfg.dataset.batch_size,
        required_batch_size_multiple=cfg.dataset.required_batch_size_multiple,
        max_positions=utils.resolve_max_positions(task.max_positions(), model.max_positions()),
        ignore_invalid_inputs=True,
        seed=cfg.common.seed,
    )
    samples = list(islice(batches_of_seed.next_epoch_itr(), batches))
    rows = [gradients(model, criterion, sample) for sample in samples]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def gradients(model: Any, criterion: Any, sample: dict) -> Dict[str, float]:
    """The rows of one batch."""
    seen: List[Any] = []
    hook = model.encoder.embed_tokens.register_forward_hook(lambda module, inputs, outputs: seen.append(outputs))
    try:
        loss, pieces, _ = criterion(model, sample)
    finally:
        hook.remove()
    source = seen[0]  # the decoder may share the embedding, but comes later
    source.retain_grad()
    model.zero_grad()
    (loss / pieces).backward()
    tokens = sample["net_input"]["src_tokens"] != model.encoder.padding_idx
    found = {
        "loss": float(loss.detach() / pieces),
        "reaches the source": float(source.grad.norm()),
        "tells apart": apart(source.grad, tokens),
    }
    squares: Dict[str, float] = {}
    for name, parameter in model.named_parameters():
        module = next(module for pattern, module in MODULES if re.search(pattern, name))
        squares[module] = squares.get(module, 0.0) + float(parameter.grad.double().pow(2).sum())
    found.update({module: square**0.5 for module, square in squares.items()})
    return found


def apart(grad: Any, tokens: Any) -> float:
    """The share of a gradient (B, n, D) that differs between the positions of a sentence, those in `tokens` (B, n)."""
    mask = tokens.unsqueeze(2).to(grad)
    mean = (grad * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)
    return float((((grad - mean) * mask) ** 2).sum() / ((grad * mask) ** 2).sum())
