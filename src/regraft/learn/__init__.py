"""Features or batches in, a fitted model out."""
