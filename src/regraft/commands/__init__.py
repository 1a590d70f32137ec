"""The story of each command."""
