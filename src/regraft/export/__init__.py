"""A bundle in other formats."""
