"""Gradient descent: one loop."""
