"""Comparing two builds by what is kept of them: versions, runs or files, measured at different times, predicted or published.

`pairing` puts the same metric of the same case side by side, `likeness` says in what else the two differ, `judging` makes
verdicts, `blame` finds the operator whose time moved, and `comparison` holds it all. Everything is a pure function of observations;
`tables`, `markdown` and `documents` make text of it.
"""
