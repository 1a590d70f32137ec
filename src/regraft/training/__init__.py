"""Gradient descent: one loop, its batches, checkpoints and processes."""
