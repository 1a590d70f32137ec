"""HTTP: requests in, answers of worker processes out; `page/` is what a browser shows."""
