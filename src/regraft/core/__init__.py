"""What everything stands on; knows nothing of images."""
