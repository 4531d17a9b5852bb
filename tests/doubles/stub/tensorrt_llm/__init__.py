"""What an installation from PyPI alone may leave: a package that can be imported, and nothing in it."""
