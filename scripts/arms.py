"""The arms of scripts/benchmark.py: each is built here, in a process of its own, and then works on request."""

import contextlib
import io
import logging
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, List, Tuple

from common import Problem, die_with_parent, import_plugin

Step = Callable[[], Any]


def serve(connection: Any, workload: str, arm: Dict[str, Any], sizes: Dict[str, Any]) -> None:
    """Build an arm, then run a step for every message until the other end closes; answer with seconds and bytes.

    Memory is what came on top of the process as it was before the arm was built: parameters, gradients, the optimiser's
    state and activations, not the libraries. On a GPU it is what torch's allocator held at most.
    """
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's concern
    del sys.argv[1:]  # fairseq looks for a --user-dir there

    def answer(message: Dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody is there any more
            connection.send(message)

    def asked() -> bool:
        try:
            return connection.recv()
        except (EOFError, OSError):
            return False

    try:
        import torch

        logging.disable(logging.WARNING)
        torch.set_num_threads(sizes["threads"])
        device = torch.device("cuda" if torch.cuda.is_available() and not sizes["cpu"] else "cpu")
        import_plugin(arm.get("user_dir"))
        torch.zeros(1, device=device)
        before = peak_memory(device)
        torch.manual_seed(sizes["seed"])
        step = WORKLOADS[workload](arm, sizes, device)
        answer({"ready": True})
        while asked():
            synchronise(device)
            start = time.perf_counter()
            parts = step() or {}
            synchronise(device)
            seconds = time.perf_counter() - start
            peak = peak_memory(device)
            answer({"seconds": seconds, **parts, "memory": peak - before, "whole": peak})
    except (Problem, MemoryError, ValueError, OSError) as error:
        answer({"error": str(error) or "out of memory"})
    except Exception:
        answer({"error": traceback.format_exc()})


def synchronise(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def peak_memory(device: Any) -> int:
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


# ---- models


def build(arm: Dict[str, Any], sizes: Dict[str, Any]) -> Tuple[Any, Any, Any, Any]:
    """A model as fairseq-train would build it, with its task, configuration and arguments."""
    from fairseq import options, tasks
    from fairseq.data import Dictionary
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    if sizes["dim"] % sizes["heads"]:
        raise Problem(f"--heads {sizes['heads']} does not divide --dim {sizes['dim']}")
    words = ["data", "--arch", arm["arch"], "--share-all-embeddings", "--task", "translation"]
    words += ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1", "--optimizer", "adam"]
    words += ["--lr", "1e-4", "--dropout", str(sizes["dropout"])]
    for flag in "max-source-positions", "max-target-positions":
        words += [f"--{flag}", str(4 + max(sizes["length"], sizes.get("out_length", 0)))]
    for side in "encoder", "decoder":
        for name, key in (
            ("embed-dim", "dim"),
            ("ffn-embed-dim", "ffn"),
            ("layers", "layers"),
            ("attention-heads", "heads"),
        ):
            # an architecture of the user's keeps its feed-forward, which it may have chosen for as many parameters
            if key != "ffn" or "user_dir" not in arm:
                words += [f"--{side}-{name}", str(sizes[key])]
    parser = options.get_training_parser()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            args = options.parse_args_and_arch(parser, words + arm["options"])
        except SystemExit:
            raise Problem(said.getvalue().strip().splitlines()[-1]) from None
    args.source_lang, args.target_lang = "en", "de"
    cfg = convert_namespace_to_omegaconf(args)
    dictionary = Dictionary()
    for i in range(sizes["vocab"] - len(dictionary)):
        dictionary.add_symbol(f"w{i}")
    task = tasks.TASK_REGISTRY["translation"](cfg.task, dictionary, dictionary)
    return task.build_model(cfg.model), task, cfg, args


def sentences(rows: int, length: int, sizes: Dict[str, Any], left_pad: bool) -> Any:
    """(rows, length) random sentences of 0.9 to 1 times that length, end of sentence included."""
    import torch

    shortest = max(1, int(0.9 * length))
    lengths = torch.randint(shortest, length + 1, (rows,)).clamp(max=length)
    lengths[0] = length
    tokens = torch.randint(4, sizes["vocab"], (rows, length))
    place = torch.arange(length).expand(rows, -1)
    place = place - (length - lengths).unsqueeze(1) if left_pad else place
    tokens[place == (lengths - 1).unsqueeze(1)] = 2
    tokens[(place < 0) | (place >= lengths.unsqueeze(1))] = 1
    return tokens


def training(arm: Dict[str, Any], sizes: Dict[str, Any], device: Any) -> Step:
    """An update of a translation model: forward, label-smoothed loss, backward, clipping, Adam."""
    import torch
    from fairseq import optim

    model, task, cfg, _ = build(arm, sizes)
    model.to(device).train()
    criterion = task.build_criterion(cfg.criterion)
    optimizer = optim.build_optimizer(cfg.optimizer, list(model.parameters()))
    rows = max(1, sizes["tokens"] // sizes["length"])
    source = sentences(rows, sizes["length"], sizes, left_pad=True)
    target = sentences(rows, sizes["length"], sizes, left_pad=False)
    # fairseq's shifted target: the end of sentence first
    previous = torch.cat((torch.full((rows, 1), 2), target[:, :-1].masked_fill(target[:, :-1] == 2, 1)), dim=1)
    sample = {
        "net_input": {
            "src_tokens": source.to(device),
            "src_lengths": (source != 1).sum(dim=1).to(device),
            "prev_output_tokens": previous.to(device),
        },
        "target": target.to(device),
        "ntokens": int((target != 1).sum()),
    }

    def step() -> None:
        loss, _, _ = criterion(model, sample)
        optimizer.backward(loss / sample["ntokens"])
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def decoding(arm: Dict[str, Any], sizes: Dict[str, Any], device: Any) -> Step:
    """Beam search of a batch to exactly `out_length` tokens, by fairseq's own generator."""
    source = sentences(sizes["batch"], sizes["length"], sizes, left_pad=True)
    if arm["arch"] == "ctranslate2":
        return ctranslate2(arm, sizes, source, device)
    model, task, cfg, _ = build(arm, sizes)
    model.to(device).eval()
    cfg.common_eval.path = "model.pt"  # as in fairseq's commands: nothing here shows attention
    cfg.generation.beam = sizes["beam"]
    # as many steps for all: no hypothesis may end before, none can go on behind
    cfg.generation.min_len = cfg.generation.max_len_b = sizes["out_length"] - 1
    cfg.generation.max_len_a = 0
    model.prepare_for_inference_(cfg)
    generator = task.build_generator([model], cfg.generation)
    net_input = {"src_tokens": source.to(device), "src_lengths": (source != 1).sum(dim=1).to(device)}

    encode = model.encoder.forward_torchscript
    parts = {}

    def timed(*inputs: Any) -> Any:
        synchronise(device)
        start = time.perf_counter()
        out = encode(*inputs)
        synchronise(device)
        parts["encoder"] = time.perf_counter() - start
        return out

    model.encoder.forward_torchscript = timed

    def step() -> Dict[str, float]:
        found = task.inference_step(generator, [model], {"net_input": net_input})
        if any(len(best[0]["tokens"]) != sizes["out_length"] for best in found):
            raise RuntimeError(f"a hypothesis is not of {sizes['out_length']} tokens")
        return parts

    return step


def ctranslate2(arm: Dict[str, Any], sizes: Dict[str, Any], source: Any, device: Any) -> Step:
    """The same search by CTranslate2 on fairseq's Transformer."""
    try:
        import ctranslate2 as library
    except ImportError:
        raise Problem("CTranslate2 is not installed: `pip install ctranslate2`, or leave that arm out") from None
    import torch

    model, task, _, args = build({**arm, "arch": "transformer"}, sizes)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for lang in "en", "de":
            task.source_dictionary.save(str(folder / f"dict.{lang}.txt"))
        torch.save({"args": args, "model": model.state_dict()}, folder / "model.pt")
        converter = library.converters.FairseqConverter(str(folder / "model.pt"), str(folder))
        converter.convert(str(folder / "converted"), quantization=arm["quantization"])
        translator = library.Translator(
            str(folder / "converted"),
            device=device.type,
            inter_threads=1,
            intra_threads=sizes["threads"],
            compute_type=arm["quantization"],
        )
    del model
    words = task.source_dictionary.symbols
    texts: List[List[str]] = [[words[i] for i in row if i > 2] for row in source.tolist()]
    steps = sizes["out_length"] - 1

    def step() -> None:
        found = translator.translate_batch(
            texts, beam_size=sizes["beam"], min_decoding_length=steps, max_decoding_length=steps, max_batch_size=0
        )
        assert all(len(best.hypotheses[0]) == steps for best in found)

    return step


def encoding(arm: Dict[str, Any], sizes: Dict[str, Any], device: Any) -> Step:
    """Forward and backward of a classifier of bytes: the encoder and a mean, as in the paper's table of speed."""
    import torch

    model, *_ = build(arm, sizes)
    encoder = model.encoder.to(device).train()
    rows = max(1, sizes["tokens"] // sizes["length"])
    tokens = torch.randint(4, sizes["vocab"], (rows, sizes["length"]), device=device)
    if "fused" in arm:
        if arm["fused"] and not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
            raise Problem(f"torch {torch.__version__} has no fused attention: leave that arm out")
        for layer in encoder.layers:
            # the way through torch's fused attention, or fairseq's own through the n x n matrix
            layer.self_attn.skip_embed_dim_check = not arm["fused"]
    lengths = torch.full((rows,), sizes["length"], device=device)

    def encode() -> Any:
        if hasattr(encoder, "encode"):  # Luna's, without what its decoder would read
            return encoder.encode(tokens).out.mean(dim=1)
        return encoder(tokens, src_lengths=lengths)["encoder_out"][0].mean(dim=0)

    head = torch.nn.Linear(sizes["dim"], 2).to(device)
    labels = torch.randint(2, (rows,), device=device)
    parameters = [*encoder.parameters(), *head.parameters()]

    def step() -> None:
        torch.nn.functional.cross_entropy(head(encode()), labels).backward()
        for parameter in parameters:
            parameter.grad = None

    return step


def operator(arm: Dict[str, Any], sizes: Dict[str, Any], device: Any) -> Step:
    """The causal product of the paper's section 3.3 alone, forward and backward."""
    import importlib

    import torch

    from fairseq_luna.modules.causal_attention import head_decays

    form = importlib.import_module(f"fairseq_luna.ops.causal.{arm['form']}")
    product = getattr(form, f"{arm['form']}_causal_product")
    width = sizes["dim"] // sizes["heads"]
    shape = (max(1, sizes["tokens"] // sizes["length"]), sizes["heads"], sizes["length"])
    x, y = (torch.randn(*shape, width, device=device, requires_grad=True) for _ in range(2))
    z = torch.randn(*shape, sizes["slots"], device=device, requires_grad=True)
    ones = torch.randn(*shape, sizes["slots"], device=device)
    decay = head_decays(sizes["heads"], device) if arm["decaying"] else None

    def step() -> None:
        torch.autograd.grad(product(x, y, z, decay=decay)[0], (x, y, z), ones)

    return step


WORKLOADS = {"train": training, "decode": decoding, "length": encoding, "operator": operator}
