"""Texts of one class each to fairseq data."""
