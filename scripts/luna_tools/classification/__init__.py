"""Classifiers of long texts, trained and compared: scripts/classify.sh."""
