"""The scores against numbers counted by hand and against sacrebleu's own command."""

import json
import math
import subprocess
import sys

import pytest
from luna_tools.evaluation.scores import (
    by_length,
    compare,
    compound_split,
    compound_split_bleu,
    has_todays_lengths,
    score,
)
from luna_tools.plots import draw_by_length
from luna_tools.study.report import BY_WORDS, mean_by_length

from fairseq_luna.errors import Problem

HYPOTHESES = ["Die rot-weiße Fahne weht im Wind.", "Das Haus war leer."]
REFERENCES = ["Die rot-weiße Fahne weht im starken Wind.", "Das Haus ist leer."]

pytestmark = pytest.mark.stock


def test_identical_text():
    for name, found in score(REFERENCES, REFERENCES, "de", ("BLEU", "chrF", "chrF2++", "TER")).items():
        assert found["score"] == (0 if name == "TER" else 100), name
    assert compound_split_bleu(REFERENCES, REFERENCES)["score"] == 100


def test_compound_split_bleu_by_hand():
    """With the compound in three words:

    Die rot ##AT##-##AT## weiße Fahne weht im Wind .             9 words
    Die rot ##AT##-##AT## weiße Fahne weht im starken Wind .    10 words
    Das Haus war leer .                                          5 words
    Das Haus ist leer .                                          5 words
    """
    unigrams = (9 + 4) / (9 + 5)  # all; all but "war"
    bigrams = (7 + 2) / (8 + 4)  # all but "im Wind"; "Das Haus" and "leer ."
    trigrams = (5 + 0) / (7 + 3)  # the five before "weht im Wind"; none
    fourgrams = (4 + 0) / (6 + 2)  # the four before "Fahne weht im Wind"; none
    brevity = math.exp(1 - 15 / 14)
    by_hand = 100 * brevity * (unigrams * bigrams * trigrams * fourgrams) ** (1 / 4)

    found = compound_split_bleu(HYPOTHESES, REFERENCES)
    assert found["score"] == round(by_hand, 2)
    assert "tok:none" in found["signature"] and "smooth:none" in found["signature"] and "##AT##" in found["how"]


def test_bleu_and_ter_by_hand():
    """As one word, the compound makes all the difference between the two kinds of BLEU:

    Die rot-weiße Fahne weht im Wind .             7 words
    Die rot-weiße Fahne weht im starken Wind .     8 words, and the 5 of the other sentence
    """
    unigrams, bigrams = (7 + 4) / (7 + 5), (5 + 2) / (6 + 4)
    trigrams, fourgrams = (3 + 0) / (5 + 3), (2 + 0) / (4 + 2)
    by_hand = 100 * math.exp(1 - 13 / 12) * (unigrams * bigrams * trigrams * fourgrams) ** (1 / 4)

    found = score(HYPOTHESES, REFERENCES, "de")
    assert found["BLEU"]["score"] == round(by_hand, 2) and "tok:13a" in found["BLEU"]["signature"]
    assert found["BLEU"]["score"] != compound_split_bleu(HYPOTHESES, REFERENCES)["score"]
    edits, words = 1 + 1, 7 + 4  # "starken" put in, "war" replaced; the full stops are part of their words
    assert found["TER"]["score"] == round(100 * edits / words, 2)


@pytest.mark.parametrize(
    "line, split",
    [
        ("rot-weiß", "rot ##AT##-##AT## weiß"),
        ("Nord-Süd-Achse", "Nord ##AT##-##AT## Süd ##AT##-##AT## Achse"),
        ("a-b-c", "a ##AT##-##AT## b-c"),  # as perl's s///g: the b went with the first match
        ("Ja - nein, -5", "Ja - nein , -5"),
        ('<b> & "x" [y] | Peter\'s', '< b > & " x " [ y ] | Peter \' s'),  # nothing escaped
        ("", ""),
    ],
)
def test_compound_split(line, split):
    assert compound_split([line]) == [split]


def test_as_sacrebleu_itself(tmp_path):
    """Scores, signatures and intervals are those of the command `sacrebleu --confidence`."""
    references = [f"Der Hund Nummer {i} sah die Katze auf der alten Mauer am {i % 7}. Tag." for i in range(40)]
    hypotheses = [line.replace("Katze", "Maus") if i % 3 else line[: 20 + i] for i, line in enumerate(references)]
    for name, lines in ("hypotheses", hypotheses), ("references", references):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "hypotheses", "-m", "bleu", "chrf", "ter"]
    command += ["--chrf-word-order", "2", "--confidence", "-w", "2", "-f", "json"]
    theirs = json.loads(subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, check=True).stdout)
    ours = score(hypotheses, references, "de", resamples=1000)
    for their, (name, our) in zip(theirs, ours.items()):
        assert (their["name"], their["score"], their["signature"]) == (name, our["score"], our["signature"])
        assert our["95 % interval"]["mean"] == pytest.approx(their["confidence_mean"], abs=0.011)
        assert our["95 % interval"]["plus or minus"] == pytest.approx(their["confidence_var"], abs=0.011)


def test_unequal_counts():
    for function in (lambda *both: score(*both, "de"), compound_split_bleu):
        with pytest.raises(Problem, match="1 hypotheses and 2 references"):
            function(HYPOTHESES[:1], REFERENCES)
    with pytest.raises(Problem, match="3 hypotheses and 2 references"):
        by_length(HYPOTHESES + [""], HYPOTHESES, REFERENCES, "de")
    with pytest.raises(Problem, match="empty"):
        score([], [], "de")


def test_empty_hypotheses():
    """All empty, and some: the resamples of both have samples without any match."""
    for hypotheses in ["", ""], ["", REFERENCES[1]]:
        found = score(hypotheses, REFERENCES, "de", resamples=20)
        assert 0 <= found["BLEU"]["score"] < 50
        assert compound_split_bleu(hypotheses, REFERENCES, 20)["score"] < 50
    assert score(["", ""], REFERENCES, "de")["TER"]["score"] == 100


def test_by_length():
    lengths = [0, 1, 10, 11, 25, 60, 61, 200, 401]
    sources = [" ".join("x" * n) for n in lengths]
    references = [f"der Satz Nummer {n} ist gut" for n in lengths]
    hypotheses = ["ein anderer" if n == 25 else line for n, line in zip(lengths, references)]
    found = by_length(sources, hypotheses, references, "de")
    names = [bucket["words"] for bucket in found]
    assert names[:2] + names[5:] == ["1-10", "11-20", "51-60", "61-100", "101-200", "201-400", ">400"]
    assert [bucket["sentences"] for bucket in found] == [3, 1, 1, 0, 0, 1, 1, 1, 0, 1]
    assert [bucket["BLEU"] for bucket in found] == [100, 100, 0, None, None, 100, 100, 100, None, 100]


def test_lengths_of_another_version_do_not_mix(tmp_path):
    sources = ["x " * 5, "x " * 80, "x " * 500]
    today = by_length(sources, REFERENCES[:1] * 3, REFERENCES[:1] * 3, "de")
    before = [{"words": "1-10", "sentences": 1, "BLEU": 50.0}, {"words": ">60", "sentences": 2, "BLEU": 20.0}]
    assert has_todays_lengths(today) and not has_todays_lengths(before) and not has_todays_lengths([])
    mean = {bucket["words"]: bucket["BLEU"] for bucket in mean_by_length([{BY_WORDS: before}, {BY_WORDS: today}])}
    assert (mean["1-10"], mean["11-20"], mean["61-100"], mean[">400"]) == (75, None, 100, 100) and ">60" not in mean
    for models in [("new", today), ("old", before)], [("old", before), ("new", today)]:
        draw_by_length(models, tmp_path / "lengths.png")
        assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_compare():
    references = [f"der Satz Nummer {n} ist gut und lang" for n in range(50)]
    worse = [line if n % 2 else line[:14] for n, line in enumerate(references)]
    found = compare(references, worse, references, "de")
    assert list(found) == ["BLEU", "chrF2++", "TER"]
    for name, test in found.items():
        assert test["this"] == (0 if name == "TER" else 100) != test["other"], name
        assert test["p-value"] < 0.01 and "bs:1000|seed:12345" in test["signature"]
    assert all(test["p-value"] == 1 for test in compare(worse, worse, references, "de").values())
