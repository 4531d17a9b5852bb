"""Suites and tests use the installed plugin; nothing is loaded here on purpose."""
