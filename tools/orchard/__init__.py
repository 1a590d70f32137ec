"""The demo data set, which regraft draws itself: `photos` arranges and writes, `solids` casts rays, `paint` colours."""
