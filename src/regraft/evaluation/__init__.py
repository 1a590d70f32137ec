"""How good a bundle is, and whether two models differ."""
