"""Foundations that know nothing about images: errors, configuration, files, progress, runtime, statistics."""
