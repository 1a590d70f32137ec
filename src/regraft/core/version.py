"""The version of regraft, in one place for everything that records which version made it."""

__version__ = "0.1.0"
