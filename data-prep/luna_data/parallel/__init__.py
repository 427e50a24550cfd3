"""Parallel text to fairseq data, by steps that go on after an interruption."""
