"""The classifier: padding and batches, gradients, data that is not as it should be, fairseq's commands."""

import re
from argparse import Namespace

import pytest
import torch
from commands import assert_resumes, fairseq, run
from fairseq import options
from fairseq.data import Dictionary, indexed_dataset
from tiny import PAD

from fairseq_luna.data.byte_text import byte_dictionary, encode_bytes, is_byte_dictionary
from fairseq_luna.models.luna_classifier import LunaClassifierModel
from fairseq_luna.models.luna_classifier.config import ARCHITECTURES, CONFIGS, LunaClassifierConfig
from fairseq_luna.tasks.text_classification import TextClassificationConfig, TextClassificationTask

pytestmark = pytest.mark.stock
DIMS = {
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "projection_length": 6,
    "max_source_positions": 64,
    "dropout": 0.0,
}
VARIANTS = {
    "luna": {},
    "untied-pre-norm": {"untie_luna_kv": True, "encoder_normalize_before": True},
    "gaussian": {"pack_bias": "gaussian", "encoder_unpack_bias": "gaussian", "pack_values": "unprojected"},
    "softmax": {"encoder_self_attention": "softmax"},
    "local-softmax": {"encoder_self_attention": "softmax", "encoder_unpack_bias": "gaussian"},
    "linformer": {"encoder_self_attention": "linformer", "linformer_length": 5},
    "linformer-per-head": {"encoder_self_attention": "linformer", "linformer_per_head": True, "linformer_length": 5},
    "first": {"pooling": "first"},
}
variants = pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)


def classes(*names):
    dictionary = Dictionary()
    for name in names:
        dictionary.add_symbol(name)
    return dictionary


def build(**settings):
    torch.manual_seed(1)
    task = Namespace(source_dictionary=byte_dictionary(), label_dictionary=classes("yes", "no", "perhaps"))
    return LunaClassifierModel.build_model(LunaClassifierConfig(**{**DIMS, **settings}), task).double().eval()


def texts(lengths, left=0):
    """Random bytes, with padding on the right and as much on the left as is said."""
    tokens = torch.full((len(lengths), left + max(lengths)), PAD)
    torch.manual_seed(2)
    for row, length in zip(tokens, lengths):
        row[left : left + length] = torch.randint(4, 260, (length,))
    return tokens


@variants
def test_a_text_alone_is_the_same_in_a_batch(settings):
    """With padding on either side."""
    model, lengths = build(**settings), [12, 5, 1]
    for left in 0, 3:
        batch = texts(lengths, left)
        scores, _ = model(batch)
        assert scores.shape == (3, 3)
        for row, length, found in zip(batch, lengths, scores):
            alone, _ = model(row[left : left + length].unsqueeze(0))
            torch.testing.assert_close(found, alone[0])


@variants
def test_every_parameter_has_a_gradient(settings):
    model = build(**settings).train()
    model(texts([12, 5]))[0].pow(2).sum().backward()
    assert all(x.grad is not None for x in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_attention_heads": 5}, "--encoder-attention-heads 5 does not divide"),
        ({"linformer_length": 0}, "--linformer-length must be at least 1"),
        ({"pooling": "last"}, "--pooling 'last' is unknown; choose from mean, first"),
    ],
)
def test_settings_that_make_no_model(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_settings_without_effect_are_told(caplog):
    build(encoder_self_attention="linformer", linformer_length=4, tokens_per_slot=2.0, most_tokens_per_slot=4.0)
    build(linformer_length=4, pack_bias="gaussian", tokens_per_slot=2.0)
    told = [said.split(" has no effect")[0] for said in caplog.messages]
    assert told == ["--tokens-per-slot 2.0", "--most-tokens-per-slot 4.0", "--linformer-length 4"]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_architectures_build(arch):
    task = Namespace(source_dictionary=byte_dictionary(), label_dictionary=classes("a", "b"))
    model = LunaClassifierModel.build_model(CONFIGS[arch](), task)
    assert model.cfg.arch == arch and model.max_positions() == 4096


def test_any_bytes_are_a_text():
    dictionary, text = byte_dictionary(), bytes(range(256)) + b"\r\n\xff\xfe"
    tokens = encode_bytes(text, dictionary)
    assert bytes(int(dictionary.symbols[i]) for i in tokens) == text
    assert len(encode_bytes(b"", dictionary)) == 0
    assert is_byte_dictionary(dictionary) and not is_byte_dictionary(classes("a", "b"))


def test_texts_are_classified_in_python():
    model = build()
    found = model.classify(["a text", b"\xff\x00"])
    for one in found:
        assert set(one) == {"yes", "no", "perhaps"} and abs(sum(one.values()) - 1) < 1e-6
        assert list(one.values()) == sorted(one.values(), reverse=True)
    for text, length in ("", 0), ("a" * 65, 65):
        with pytest.raises(ValueError, match=f"Text 1 has {length} tokens, but the model reads 1 to 64"):
            model.classify([text])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["luna", "gaussian", "linformer", "softmax"])
def test_half_precision(name, dtype):
    if dtype == torch.float16 and torch.__version__ < (2,):
        pytest.skip("torch 1 has no products in float16 on a CPU")
    wide, half = build(**VARIANTS[name]), build(**VARIANTS[name]).to(dtype)
    tokens = texts([60, 17, 1])
    want, found = wide(tokens)[0], half(tokens)[0].double()
    assert (found - want).abs().max() < (0.05 if dtype == torch.bfloat16 else 0.01) * want.abs().max()


# ---- data, and fairseq's commands


def write(folder, split, rows, labels):
    """Texts and the names of their classes, as data-prep/ writes them."""
    for part, dictionary, tensors in (
        ("input0", byte_dictionary(), [encode_bytes(text, byte_dictionary()) for text, _ in rows]),
        ("label", labels, [torch.tensor([labels.index(name)]) for _, name in rows]),
    ):
        (folder / part).mkdir(parents=True, exist_ok=True)
        dictionary.save(str(folder / part / "dict.txt"))
        prefix = str(folder / part / split)
        builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(dictionary))
        for tensor in tensors:
            builder.add_item(tensor)
        builder.finalize(f"{prefix}.idx")


def load(folder):
    task = TextClassificationTask.setup_task(
        TextClassificationConfig(data=str(folder), max_source_positions=64, seed=1)
    )
    task.load_dataset("train")
    return task.dataset("train")


@pytest.mark.parametrize(
    ("rows", "labels", "message"),
    [
        ([(b"a", "up"), (b"", "up")], ["up", "down"], "text 2 of train is empty"),
        ([(b"a", "up"), (b"b", "sideways")], ["up", "down"], "label 2 of train is not among the 2 classes"),
        ([(b"a", "up")], ["up"], "has 1 class: to classify takes at least two"),
    ],
)
def test_data_that_cannot_be_read(tmp_path, rows, labels, message):
    write(tmp_path, "train", rows, classes(*labels))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_texts_and_labels_of_different_numbers(tmp_path):
    write(tmp_path, "train", [(b"a", "up"), (b"b", "down")], classes("up", "down"))
    write(tmp_path / "other", "train", [(b"a", "up")], classes("up", "down"))
    (tmp_path / "label").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="There is no .*label.dict.txt"):
        load(tmp_path)
    (tmp_path / "other" / "label").rename(tmp_path / "label")
    with pytest.raises(ValueError, match="train has 2 texts, but 1 labels"):
        load(tmp_path)


def test_the_end_of_sentence_that_fairseq_preprocess_writes_is_left_out(tmp_path):
    words, labels = classes("a", "b"), classes("up", "down")
    for part, dictionary, lines in (("input0", words, ["a b", "b"]), ("label", labels, ["up", "down"])):
        (tmp_path / part).mkdir()
        dictionary.save(str(tmp_path / part / "dict.txt"))
        prefix = str(tmp_path / part / "train")
        builder = indexed_dataset.make_builder(f"{prefix}.bin", impl="mmap", vocab_size=len(dictionary))
        for line in lines:
            builder.add_item(dictionary.encode_line(line, add_if_not_exist=False))
        builder.finalize(f"{prefix}.idx")
    data = load(tmp_path)
    samples = {int(data[i]["id"]): data[i]["net_input.src_tokens"].tolist() for i in range(2)}
    assert samples == {0: [4, 5], 1: [5]} and sorted(data.sizes[0]) == [1, 2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that tells texts with a 7 in them from others, by fairseq-train."""
    folder, generator = tmp_path_factory.mktemp("sevens"), torch.Generator().manual_seed(1)
    labels = classes("with", "without")
    for split, number in ("train", 400), ("valid", 60):
        rows = []
        for i in range(number):
            text = torch.randint(48, 55, (20 + i % 9,), generator=generator).tolist()
            if i % 2:
                text[i % len(text)] = ord("7")
            rows.append((bytes(text), "with" if i % 2 else "without"))
        write(folder / "data", split, rows, labels)
    run(
        fairseq(
            *("train", folder / "data", "--task", "text_classification", "--criterion", "sentence_prediction"),
            *("--arch", "luna_classifier_tiny", "--encoder-layers", 1, "--encoder-embed-dim", 32, "--dropout", 0),
            *("--max-source-positions", 64, "--batch-size", 40, "--max-epoch", 6, "--optimizer", "adam", "--lr", 0.01),
            *("--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric", "--clip-norm", 1),
            *("--save-dir", folder, "--no-epoch-checkpoints", "--seed", 1),
        )
    )
    return folder


def test_a_resumed_training_equals_an_unbroken_one(trained, tmp_path):
    """To the bit, in the midst of an epoch, with dropout."""
    words = "--task", "text_classification", "--criterion", "sentence_prediction", "--arch", "luna_classifier_tiny"
    words += "--encoder-layers", 1, "--max-source-positions", 64, "--batch-size", 60, "--dropout", 0.2
    words += "--optimizer", "adam", "--lr", 0.01, "--no-epoch-checkpoints", "--disable-validation"
    assert_resumes(tmp_path, trained / "data", *words)


def test_fairseq_validate(trained):
    words = "--task", "text_classification", "--path", trained / "checkpoint_best.pt", "--batch-size", 20
    done = run(fairseq("validate", trained / "data", *words, "--valid-subset", "valid", "--max-source-positions", 64))
    accuracy = float(re.search(r"accuracy ([\d.]+)", done.stdout + done.stderr)[1])
    assert accuracy > 90


def test_the_interface_of_python(trained):
    hub = LunaClassifierModel.from_pretrained(str(trained), "checkpoint_best.pt", str(trained / "data"))
    with_one, without = hub.models[0].classify(["0123456701234560123", "01234560123456012345"])
    assert next(iter(with_one)) == "with" and next(iter(without)) == "without"


def test_positions_come_from_the_task():
    words = "data --task text_classification --arch luna_classifier_tiny --criterion sentence_prediction".split()
    args = options.parse_args_and_arch(
        options.get_training_parser(), [*words, "--max-source-positions", "77", "--optimizer", "adam"]
    )
    task = Namespace(source_dictionary=byte_dictionary(), label_dictionary=classes("a", "b"))
    assert LunaClassifierModel.build_model(args, task).max_positions() == 77
