"""The version of regraft, for all that says which one made it."""

__version__ = "0.1.0"
