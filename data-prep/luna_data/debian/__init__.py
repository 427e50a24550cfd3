"""Parallel text out of Debian's packages, as plain files."""
