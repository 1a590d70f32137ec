"""A bundle in other formats, and the script that goes with it."""
