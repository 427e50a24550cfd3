"""Translating with trained models: which files they are, the search, the `Translator`, models packed to hand on."""
