"""What the package says of itself."""

__version__ = "1.3.0rc12"
