"""Luna as pure tensor functions, with torch alone: one file an operator, its forms side by side.

    pack.py                Y_P = Attention(P, C)                                        section 3.1 of the paper
    unpack.py              Y_X = Attention(X, Y_P)                                      section 3.1
    causal/naive.py        f_t(X, Y, Z) = 1/t x_t sum_{j <= t} y_j^T z_j                section 3.3
    causal/chunk.py        the same by chunks, for training
    causal/recurrent.py    the same step by step
    causal/attention.py    Y = f(softmax_l(f(X, X, A^T)), A^T, X), whole and by step    section 3.3
    cross_entropy.py       the loss of log_softmax(W X), a few rows at a time

Letters are the paper's (arXiv 2106.01540): X (B, n, D) the sequence, P (B, l, D) the packed sequence, C (B, m, D) the
context. After projection the heads stand apart: B batch, H heads, n positions, l slots, d channels of a head. Every sum
over positions is taken in float32 at least, whatever dtype comes in. Results have the dtype of what came in.

`dispatch.py` decides which form of an operator runs. The fused forms are in `triton/`.
"""
