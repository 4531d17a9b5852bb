"""What the package says of itself."""

__version__ = "1.0.0"
