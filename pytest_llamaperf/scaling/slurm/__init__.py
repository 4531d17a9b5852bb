"""Shards as jobs of Slurm: one `sbatch` each, by a script that is kept and can be submitted by hand.

`profiles` is what differs from one cluster to the next, `scheduler` asks Slurm and tells it, `fitting` lays shards onto nodes,
`scripts` writes what is submitted, `ending` says what the end of a job means, and `watching` follows a run to its end and
leaves no job behind.
"""
