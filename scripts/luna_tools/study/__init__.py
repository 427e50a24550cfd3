"""The same training for several models, side by side: scripts/compare.sh."""
