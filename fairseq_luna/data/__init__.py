"""What tasks read."""
