"""Training: from images to probabilities."""
