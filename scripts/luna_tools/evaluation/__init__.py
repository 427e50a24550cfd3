"""Translating with trained models, and scores."""
