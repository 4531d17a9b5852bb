"""What is kept of a failure, so that somebody else, on another day, can go on from it."""
