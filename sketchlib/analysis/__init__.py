"""Analysis: what the probabilities say."""
