"""The causal product of the paper's section 3.3 in its forms, and the attention that is made of it."""
