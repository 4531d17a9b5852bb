"""`python -m pytest_llamaperf.commands`: the command llamaperf where its script is not on the PATH, as in a job on a cluster."""

from pytest_llamaperf.commands import main

main(prog_name="llamaperf")
