"""Linformer's self-attention: its equation, and that padding and the batch change nothing."""

import pytest
import torch
from tiny import LINFORMER, PAD, build, sentences, targets

from fairseq_luna.modules.linformer import LinformerAttention

pytestmark = pytest.mark.stock


def attention(per_head):
    torch.manual_seed(1)
    return LinformerAttention(12, 3, longest=9, length=4, per_head=per_head).double()


@pytest.mark.parametrize("per_head", [False, True])
def test_the_equation(per_head):
    """Head by head, with E K and F V as matrices."""
    attn, x = attention(per_head), torch.randn(1, 7, 12).double()
    q, k, v = (project(x)[0] for project in (attn.query, attn.key, attn.value))
    heads = []
    for h in range(3):
        e, f = (rows[h if per_head else 0, :, :7] for rows in (attn.key_rows, attn.value_rows))
        heads.append((q[h] @ (e @ k[h]).t()).softmax(-1) @ f @ v[h])
    torch.testing.assert_close(attn(x)[0], attn.out(torch.cat(heads, -1)))


@pytest.mark.parametrize("left", [0, 2, 4])
def test_padding_changes_nothing(left):
    """On whichever side, also where the batch is longer than N."""
    attn, x = attention(False), torch.randn(1, 6, 12).double()
    batch = torch.randn(2, 11, 12).double()
    batch[0, left : left + 6] = x[0]
    padding = torch.ones(2, 11, dtype=torch.bool)
    padding[0, left : left + 6] = False
    padding[1, 1:10] = False
    torch.testing.assert_close(attn(batch, padding)[0, left : left + 6], attn(x)[0])


def test_a_longer_source_is_refused():
    model = build(**LINFORMER)
    model(sentences([64, 2]), None, targets([3, 3]))
    with pytest.raises(ValueError, match="max-source-positions is 64, but a source of 65 tokens.*Linformer's sums"):
        model(sentences([65, 2]), None, targets([3, 3]))


def test_all_parameters_have_gradients():
    model = build(**LINFORMER).train()
    logits, _ = model(sentences([12, 5]), None, targets([7, 9]))
    logits[targets([7, 9]).ne(PAD)].pow(2).sum().backward()
    assert all(x.grad is not None for x in model.parameters())
