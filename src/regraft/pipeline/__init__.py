"""The phases of a training: a linear probe on frozen features, then fine-tuning where it pays."""
