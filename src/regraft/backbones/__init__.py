"""Pretrained networks: name and weights in, an inference graph and features `(N, D)` out."""
