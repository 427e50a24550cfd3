"""What the models of scripts/benchmark.py do in a step: train, translate, encode."""

import contextlib
import io
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from fairseq_luna.errors import Problem
from luna_tools.benchmark.counting import OPTIMISER


class Job(NamedTuple):
    """A model that is ready to work.

    Attributes:
        step: does it once; gives parts of its time, by name, or None.
        amount: of `unit`, in a step.
        unit: tokens or sentences.
        first: how many steps the first one stands for: a plugin may capture what has come a few times.
        search: as `step`, but to a number of tokens; None where a step has no tokens of its own.
    """

    step: Callable[[], Any]
    amount: int
    unit: str = "tokens"
    first: int = 1
    search: Optional[Callable[[int], Any]] = None


def dtype_of(sizes: Dict[str, Any]) -> Any:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[sizes["precision"]]


def synchronise(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize()


def build(spec: Dict[str, Any], sizes: Dict[str, Any]) -> Tuple[Any, Any, Any, Any]:
    """A model as fairseq-train would build it, with its task, configuration and arguments."""
    from fairseq import options, tasks
    from fairseq.data import Dictionary
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf

    if sizes["dim"] % sizes["heads"]:
        raise Problem(f"--heads {sizes['heads']} does not divide --dim {sizes['dim']}")
    words = ["data", "--arch", spec["arch"], "--share-all-embeddings", "--task", "translation"]
    words += ["--criterion", sizes.get("criterion", "label_smoothed_cross_entropy"), "--label-smoothing", "0.1"]
    words += ["--optimizer", "adam", "--lr", "1e-4", "--dropout", str(sizes["dropout"])]
    for flag in "max-source-positions", "max-target-positions":
        # and room for the searches whose launches are counted
        words += [f"--{flag}", str(16 + max(sizes["length"], sizes.get("out_length", 0)))]
    for side in "encoder", "decoder":
        for name, key in (
            ("embed-dim", "dim"),
            ("ffn-embed-dim", "ffn"),
            ("layers", "layers"),
            ("attention-heads", "heads"),
        ):
            # an architecture of the user's keeps its feed-forward, which it may have chosen for as many parameters
            if key != "ffn" or "user_dir" not in spec:
                words += [f"--{side}-{name}", str(sizes[key])]
    parser = options.get_training_parser()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            args = options.parse_args_and_arch(parser, words + spec["options"])
        except SystemExit:
            raise Problem(said.getvalue().strip().splitlines()[-1]) from None
    args.source_lang, args.target_lang = "en", "de"
    cfg = convert_namespace_to_omegaconf(args)
    # not by flags: `--bf16` turns on what is for TPUs as well
    cfg.common.fp16, cfg.common.bf16 = (sizes["precision"] == kind for kind in ("fp16", "bf16"))
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


def training(spec: Dict[str, Any], sizes: Dict[str, Any], device: Any) -> Job:
    """An update of a translation model as fairseq's Trainer makes it: forward, label-smoothed loss, backward, clipping,
    Adam; below 32 bits with its own optimiser around that, which keeps the parameters in float32 besides."""
    import torch
    from fairseq import optim

    if sizes["precision"] == "fp16" and device.type != "cuda":
        raise Problem("fairseq trains in fp16 on a GPU alone, where its FP16Optimizer keeps the parameters: take bf16")
    model, task, cfg, _ = build(spec, sizes)
    model.to(device, dtype_of(sizes)).train()
    criterion = task.build_criterion(cfg.criterion)
    parameters = list(model.parameters())
    if sizes["precision"] == "fp32":
        optimizer = optim.build_optimizer(cfg.optimizer, parameters)
    else:
        optimizer = optim.FP16Optimizer.build_optimizer(cfg, parameters)
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

    def update() -> bool:
        optimizer.zero_grad()
        loss, sample_size, _ = criterion(model, sample)
        optimizer.backward(loss)
        with torch.autograd.profiler.record_function(OPTIMISER):
            optimizer.multiply_grads(1 / sample_size)
            try:
                optimizer.clip_grad_norm(1.0)
            except OverflowError:  # the loss is scaled less from now on
                return False
            optimizer.step()
        return True

    def step() -> None:
        while not update():
            pass  # the first step finds the scale; fairseq gives up itself where there is none

    return Job(step, sample["ntokens"], first=6 if device.type == "cuda" else 1)


def decoding(spec: Dict[str, Any], sizes: Dict[str, Any], device: Any) -> Job:
    """Beam search of a batch to exactly `out_length` tokens, by fairseq's own generator."""
    source = sentences(sizes["batch"], sizes["length"], sizes, left_pad=True)
    if spec["arch"] == "ctranslate2":
        return ctranslate2(spec, sizes, source, device)
    model, task, cfg, _ = build(spec, sizes)
    model.to(device, dtype_of(sizes)).eval()
    cfg.common_eval.path = "model.pt"  # as in fairseq's commands: nothing here shows attention
    cfg.generation.beam, cfg.generation.max_len_a = sizes["beam"], 0
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

    def search(tokens: int) -> Dict[str, float]:
        # as many steps for all: no hypothesis may end before, none can go on behind
        generator.min_len = generator.max_len_b = tokens - 1
        found = task.inference_step(generator, [model], {"net_input": net_input})
        if any(len(best[0]["tokens"]) != tokens for best in found):
            raise RuntimeError(f"a hypothesis is not of {tokens} tokens")
        return parts

    return searching(search, sizes)


def searching(search: Callable[[int], Any], sizes: Dict[str, Any]) -> Job:
    return Job(lambda: search(sizes["out_length"]), sizes["batch"], "sentences", search=search)


def ctranslate2(spec: Dict[str, Any], sizes: Dict[str, Any], source: Any, device: Any) -> Job:
    """The same search by CTranslate2 on fairseq's Transformer."""
    try:
        import ctranslate2 as library
    except ImportError:
        raise Problem("CTranslate2 is not installed: `pip install ctranslate2`, or leave that model out") from None
    import torch

    model, task, _, args = build({**spec, "arch": "transformer"}, sizes)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for lang in "en", "de":
            task.source_dictionary.save(str(folder / f"dict.{lang}.txt"))
        torch.save({"args": args, "model": model.state_dict()}, folder / "model.pt")
        converter = library.converters.FairseqConverter(str(folder / "model.pt"), str(folder))
        converter.convert(str(folder / "converted"), quantization=spec["quantization"])
        translator = library.Translator(
            str(folder / "converted"),
            device=device.type,
            inter_threads=1,
            intra_threads=sizes["threads"],
            compute_type=spec["quantization"],
        )
    del model
    words = task.source_dictionary.symbols
    texts: List[List[str]] = [[words[i] for i in row if i > 2] for row in source.tolist()]

    def search(tokens: int) -> None:
        steps = tokens - 1
        found = translator.translate_batch(
            texts, beam_size=sizes["beam"], min_decoding_length=steps, max_decoding_length=steps, max_batch_size=0
        )
        assert all(len(best.hypotheses[0]) == steps for best in found)

    return searching(search, sizes)


def encoding(spec: Dict[str, Any], sizes: Dict[str, Any], device: Any) -> Job:
    """Forward and backward of a classifier of bytes: the encoder and a mean, as in the paper's table of speed."""
    import torch

    model, *_ = build(spec, sizes)
    encoder = model.encoder.to(device, dtype_of(sizes)).train()
    rows = max(1, sizes["tokens"] // sizes["length"])
    tokens = torch.randint(4, sizes["vocab"], (rows, sizes["length"]), device=device)
    if "fused" in spec:
        if spec["fused"] and not hasattr(torch.nn.functional, "scaled_dot_product_attention"):
            raise Problem(f"torch {torch.__version__} has no fused attention: leave that model out")
        for layer in encoder.layers:
            # the way through torch's fused attention, or fairseq's own through the n x n matrix
            layer.self_attn.skip_embed_dim_check = not spec["fused"]
    lengths = torch.full((rows,), sizes["length"], device=device)

    def encode() -> Any:
        if hasattr(encoder, "represent"):  # Luna's, without what its decoder would read
            return encoder.represent(tokens).mean(dim=1)
        return encoder(tokens, src_lengths=lengths)["encoder_out"][0].mean(dim=0)

    head = torch.nn.Linear(sizes["dim"], 2).to(device, dtype_of(sizes))
    labels = torch.randint(2, (rows,), device=device)
    parameters = [*encoder.parameters(), *head.parameters()]

    def step() -> None:
        torch.nn.functional.cross_entropy(head(encode()).float(), labels).backward()
        for parameter in parameters:
            parameter.grad = None

    return Job(step, tokens.numel(), first=6 if device.type == "cuda" else 1)
