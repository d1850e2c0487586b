"""The models: which there are, their weights, and which one is loaded."""
