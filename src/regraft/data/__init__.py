"""Photos on disk to a data set and its splits: scanning, decoding, transforming, and what may be wrong with them."""
