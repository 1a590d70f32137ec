"""Images on disk: decoding, scanning, splitting, transforming, and the demo's orchard."""
