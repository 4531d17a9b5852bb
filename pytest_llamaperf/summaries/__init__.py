"""A run as CI and dashboards take it."""
