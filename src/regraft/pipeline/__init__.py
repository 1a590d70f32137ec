"""The phases of a training run."""
