"""From text to pieces and back."""
