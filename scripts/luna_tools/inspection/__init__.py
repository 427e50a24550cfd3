"""A look into trained models, and at the list of their settings."""
