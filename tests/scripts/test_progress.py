"""What the scripts read out of fairseq's log of a training."""

import math

import pytest
from luna_tools.plots import draw
from luna_tools.progress import TrainingLog

TRANSLATION = """\
2026-01-01 00:00:00 | INFO | fairseq_cli.train | num. shared model params: 1,234 (num. trained: 1,234)
2026-01-01 00:00:01 | INFO | train_inner | {"epoch": 1, "loss": "5", "nll_loss": "4", "wps": "10", "wpb": "10", "ups": "1", "num_updates": "10"}
2026-01-01 00:00:02 | INFO | train_inner | {"epoch": 1, "loss": "4", "nll_loss": "3", "wps": "30", "wpb": "10", "ups": "3", "num_updates": "20"}
2026-01-01 00:00:03 | INFO | valid | {"epoch": 1, "valid_loss": "3", "valid_nll_loss": "2", "valid_num_updates": "20"}
"""  # noqa: E501
CLASSIFIER = """\
INFO | train_inner | {"epoch": 1, "loss": "2", "nll_loss": "0.002", "accuracy": "40", "wps": "9", "wpb": "9", "ups": "1", "num_updates": "5"}
INFO | valid | {"epoch": 1, "valid_loss": "1", "valid_nll_loss": "0.001", "valid_accuracy": "62.55", "valid_num_updates": "5"}
"""  # noqa: E501


def read(text, folder):
    (folder / "train.log").write_text(text, encoding="utf-8")
    return TrainingLog.read(folder / "train.log")


def test_translation(tmp_path):
    log = read(TRANSLATION, tmp_path)
    assert (log.parameters, log.updates, log.typical_words_per_second()) == (1234, 20, 20)
    assert log.valid == {20: pytest.approx(2 * math.log(2))}
    assert log.figures() == {"train nll": "2.079", "tokens/s": "30", "valid nll": "1.386"}


def test_a_classifier_tells_its_accuracy(tmp_path):
    """Its loss is one of texts: fairseq divides the other one by their tokens, which says nothing."""
    log = read(CLASSIFIER, tmp_path)
    assert log.figures() == {"train nll": "1.386", "tokens/s": "9", "valid nll": "0.693", "valid accuracy": "62.5 %"}
    draw(log, tmp_path / "curve.png", "a classifier")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_was_killed_and_continued(tmp_path):
    """What was logged again stands last, and nothing of it twice."""
    again = CLASSIFIER.replace("62.55", "70").replace('"valid_loss": "1"', '"valid_loss": "0.5"')
    log = read(CLASSIFIER + again, tmp_path)
    assert log.accuracies == {"train": {5: 40}, "valid": {5: 70}} and list(log.valid) == [5]


def test_an_empty_log(tmp_path):
    log = read("", tmp_path)
    assert log.figures() == {} and log.updates == 0
    draw(log, tmp_path / "curve.png", "nothing")
    assert not (tmp_path / "curve.png").exists()
