"""The embedded help as running text: pages are whole and in order, and what is held out is not trained on."""

import pytest
from luna_data.help import pages as help_pages
from luna_data.help import text as help_text

from fairseq_luna.errors import Problem


@pytest.mark.parametrize("lang", ["en", "de"])
def test_pages_in_order(tmp_path, lang):
    out = tmp_path / "a text"
    help_text.write(out, lang)
    text = {split: (out / f"{split}.{lang}").read_text(encoding="utf-8") for split in ("train", "valid", "test")}
    sentences = help_pages.sentences(lang)
    pages = {name: [sentences[number] for number in numbers] for name, numbers in help_pages.pages().items()}
    found = {split: [page.split("\n") for page in whole.split("\n\n")[:-1]] for split, whole in text.items()}

    order = {split: [page for page in map(pages.get, sorted(pages)) if page in found[split]] for split in found}
    assert found["test"] == order["test"] and found["valid"] == order["valid"]
    for split in "valid", "test":
        assert 0.05 < len(text[split]) / sum(map(len, text.values())) < 0.12
    assert sum(map(len, found.values())) > 0.9 * len(pages)


@pytest.mark.parametrize("lang", ["en", "de"])
def test_no_held_out_sentence_is_trained_on(lang):
    splits = help_text.split_pages(help_pages.sentences(lang))
    assert len(splits["test"]) > 150 and len(splits["valid"]) > 150
    held_out = {sentence for split in ("valid", "test") for page in splits[split] for sentence in page}
    assert not held_out & {sentence for page in splits["train"] for sentence in page}


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Problem, match="holds other files"):
        help_text.write(tmp_path, "en")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
