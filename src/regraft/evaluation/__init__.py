"""How good a model is, and whether two differ."""
