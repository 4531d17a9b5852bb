"""Accepting: reviewed values of a run become promises in git, one by one, with the reason.

A run only proposes. `reviewing` says which of its values may become promises, and why the others may not; `rewriting` makes the
new texts of the baseline files, in which nothing else is changed, and writes them.
"""
