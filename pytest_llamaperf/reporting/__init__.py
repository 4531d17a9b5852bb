"""How results leave the session: files, the terminal, the exit status."""
