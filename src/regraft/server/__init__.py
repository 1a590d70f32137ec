"""A bundle behind HTTP: an API, a page to drop photos on, and what it takes to leave both running."""
