"""A run as one HTML page, which needs no network, no script and no colours to be understood."""
