"""Losses, as fairseq's trainer asks for them."""
