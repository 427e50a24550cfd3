"""Models that an earlier version trained load, translate as they did, and train on: names and settings are a format."""

import json
import shutil

import pytest
import torch
from commands import ROOT, fairseq, run
from fairseq import checkpoint_utils

STORED = ROOT / "tests" / "data" / "stored"
PINNED = json.loads((STORED / "translations.json").read_text(encoding="utf-8"))

pytestmark = pytest.mark.stock


def translations(name):
    """Source, the two best translations and their scores of each pinned sentence, by the stored model of that name."""
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(STORED / f"{name}.pt")], {"data": str(STORED), "source_lang": "in", "target_lang": "out"}
    )
    cfg.generation.beam = 5
    models[0].prepare_for_inference_(cfg)
    generator = task.build_generator(models, cfg.generation)
    sources = [row["source"] for row in PINNED[name]]
    tokens = [task.source_dictionary.encode_line(source, add_if_not_exist=False).long() for source in sources]
    data = task.build_dataset_for_inference(tokens, [len(line) for line in tokens])
    batch = data.collater([data[i] for i in range(len(data))])
    found = [None] * len(sources)
    for number, hypotheses in zip(batch["id"].tolist(), task.inference_step(generator, models, batch)):
        best = [(task.target_dictionary.string(each["tokens"]), float(each["score"])) for each in hypotheses[:2]]
        found[number] = {"source": sources[number], "translations": [text for text, _ in best]}
        found[number]["scores"] = [score for _, score in best]
    return found


@pytest.mark.parametrize("name", PINNED)
def test_a_stored_model_translates_as_it_did(name):
    found = translations(name)
    assert [row["translations"] for row in found] == [row["translations"] for row in PINNED[name]]
    scores = [torch.tensor([row["scores"] for row in rows]) for rows in (found, PINNED[name])]
    torch.testing.assert_close(*scores, rtol=0, atol=1e-4)


def test_a_stored_training_goes_on(tmp_path):
    """To one update more, from the state of its optimiser."""
    for side in "in", "out":
        shutil.copy(str(STORED / f"dict.{side}.txt"), str(tmp_path))
        for split in "train", "valid":
            (tmp_path / f"{split}.{side}").write_text("a b c\n" * 4)
    dictionary = ("--srcdict", tmp_path / "dict.in.txt", "--joined-dictionary")
    run(
        fairseq(
            *("preprocess", "-s", "in", "-t", "out", *dictionary, "--destdir", tmp_path / "bin"),
            *("--trainpref", tmp_path / "train", "--validpref", tmp_path / "valid"),
        )
    )
    settings = torch.load(str(STORED / "plain_packs.pt"))["cfg"]["model"]
    flags = []
    for key in "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_layers", "decoder_layers", "projection_length":
        flags += [f"--{key.replace('_', '-')}", settings[key]]
    done = run(
        fairseq(
            *("train", tmp_path / "bin", "--arch", settings["_name"], *flags, "--dropout", 0, "--share-all-embeddings"),
            *("--restore-file", STORED / "plain_packs.pt", "--save-dir", tmp_path / "on", "--cpu", "--num-workers", 0),
            *("--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr", 0.01, "--lr-scheduler", "polynomial_decay"),
            *("--warmup-updates", 100, "--total-num-update", 901, "--max-update", 901, "--batch-size", 4),
            *("--criterion", "cross_entropy", "--disable-validation", "--reset-dataloader"),  # these data are others
        )
    )
    assert "@ 900 updates" in done.stdout
    state = torch.load(str(tmp_path / "on" / "checkpoint_last.pt"))
    assert state["optimizer_history"][-1]["num_updates"] == 901
    assert {int(moments["step"]) for moments in state["last_optimizer_state"]["state"].values()} == {901}
