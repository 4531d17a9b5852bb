"""A suite in many processes, on one node or a cluster: planned as shards, run where there are GPUs, merged into one run.

A shard is one pytest process (`shards`); what all of them are stands in a manifest before anything starts (`planning`,
`manifest`). What a shard is started with and what it leaves behind is the contract that every place keeps (`contract`);
`local` is one such place, whose queue is a pure function (`queueing`), a cluster with Slurm another (`slurm`). `merging` alone reads
what shards left.
"""
