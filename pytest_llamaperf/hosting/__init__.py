"""The engine host: engines work in a process of their own that can always be ended, with everything it started.

`host` starts it and speaks with it, `phases` says how long it may take, `failures` names what went wrong; the other side
of the pipe is `children/program.py`. See docs/architecture.md.
"""
