"""Detection: did a build get slower than another? Screened on restarts that exist, confirmed on fresh ones of both.

`screening` looks for suspects, `confirming` says which engines to restart next and what follows from it, `deciding`
makes verdicts, `history` watches many releases. Everything is a pure function of readings.
"""
