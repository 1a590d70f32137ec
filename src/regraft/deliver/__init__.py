"""What the user takes away: the bundle, and predicting and evaluating with it. Never imports torch."""
