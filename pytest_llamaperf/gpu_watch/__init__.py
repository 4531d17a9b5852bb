"""Were the GPUs fit to measure on? Looked at before an engine opens, again and again while it works, after it closed."""
