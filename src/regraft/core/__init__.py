"""Errors, configuration, files, progress, statistics: what everything stands on; knows nothing of images."""
