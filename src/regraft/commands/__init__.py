"""The story of each command, one module each."""
