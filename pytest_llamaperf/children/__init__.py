"""What runs in child processes; nothing here imports the rest of the package, so it runs under interpreters without it."""
