"""Language models, trained and compared: scripts/language-model.sh."""
