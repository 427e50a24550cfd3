"""Prepared data, as the other commands read it."""
