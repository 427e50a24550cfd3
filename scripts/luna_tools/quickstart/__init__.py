"""From the embedded corpus to a scored translation: scripts/quickstart.sh."""
