"""Luna's modules, made of plain arguments: projections, attentions and layers. Tensors are batch first, (B, n, D)."""
