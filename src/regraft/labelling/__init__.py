"""From a heap of photos to labels: what is shown next, answers that are never lost, and a head solved in between."""
