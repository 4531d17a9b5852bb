"""Which nodes a shard is given: one, or as many as its GPUs need. Refused before anything starts where there are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pytest_llamaperf.errors import UsageError, nearest
from pytest_llamaperf.scaling.contract import device_name
from pytest_llamaperf.scaling.manifest import About, Shard
from pytest_llamaperf.scaling.slurm.profiles import Profile
from pytest_llamaperf.scaling.slurm.scheduler import UNLIMITED, Node
from pytest_llamaperf.wording import counted

# Minutes between the end of a shard's time and that of its job. In the first two a shard that is told to end writes its
# report; Slurm ends the job in the end, whose clock ticks once a minute.
ENDING_SECONDS = 120
MARGIN = 4


@dataclass(frozen=True)
class Seat:
    """What a shard's job asks for. `gpus` are of each node, 0 on a CPU; `minutes` is how long the shard may work."""

    nodes: int
    gpus: int
    slots: int
    minutes: float

    @property
    def job_minutes(self) -> int:
        """The time limit of its job."""
        return math.ceil(self.minutes) + MARGIN


@dataclass(frozen=True)
class Cluster:
    """The nodes that a profile's partitions have, each once; those that it excludes are not among them."""

    partition: str
    nodes: tuple[Node, ...]

    @classmethod
    def of(cls, profile: Profile, found: Sequence[Node]) -> Cluster:
        """Raises UsageError for a partition that is not there, one without nodes, and where none is the default."""
        names = {node.partition for node in found}
        wanted = profile.partition.split(",") if profile.partition else {n.partition for n in found if n.default}
        if not names:
            raise UsageError("--on slurm: sinfo shows no partition that you may use")
        if not wanted:
            raise UsageError(
                "--on slurm: the cluster has no default partition; name one in a profile, with --profile FILE; "
                f"known: {', '.join(sorted(names))}"
            )
        for name in wanted:
            if name not in names:
                _refuse(profile, "partition", f"no partition {name!r} here; {nearest(name, names)}")
        if profile.merge.partition and profile.merge.partition not in names:
            _refuse(
                profile,
                "merge",
                f"no partition {profile.merge.partition!r} here; {nearest(profile.merge.partition, names)}",
            )
        shown = ",".join(sorted(wanted))
        nodes = {node.name: node for node in found if node.partition in wanted and node.name not in profile.exclude}
        if not nodes:
            raise UsageError(f"--on slurm: the partition {shown} has no node that is not excluded")
        unknown = set(profile.exclude) - {node.name for node in found}
        if unknown:
            _refuse(
                profile, "exclude", f"no node {min(unknown)!r} here; {nearest(min(unknown), {n.name for n in found})}"
            )
        return cls(shown, tuple(nodes.values()))

    @property
    def closed(self) -> list[Node]:
        return [node for node in self.nodes if not node.open]

    def has_another(self, seat: Seat, avoided: Iterable[str]) -> bool:
        """Whether nodes that are open could take it, if it keeps away from those."""
        free = [node for node in self.nodes if node.open and node.gpus >= seat.gpus and node.name not in avoided]
        return len(free) >= seat.nodes

    def seat(self, shard: Shard, about: About, profile: Profile) -> Seat:
        """Raises UsageError for a shard that needs more than there is: GPUs of one node, of the partition, or time."""
        minutes = self._minutes(shard, profile)
        if not about.on_gpus:
            return Seat(1, 0, shard.devices, minutes)
        most = max(node.gpus for node in self.nodes)
        if not most:
            raise UsageError(
                f"--on slurm: the partition {self.partition} has no GPUs (sinfo -o %G); name another one in a profile: partition"
            )
        # The fewest nodes that share it evenly: engines over several nodes have as many GPUs on each of them.
        for nodes in range(math.ceil(shard.devices / most), shard.devices + 1):
            each = shard.devices // nodes
            if shard.devices % nodes == 0 and sum(node.gpus >= each for node in self.nodes) >= nodes:
                return Seat(nodes, each, 1, minutes)
        raise UsageError(
            f"--on slurm: {shard} needs {device_name(about, shard.devices)}, and the partition {self.partition} has "
            f"{counted(len(self.nodes), 'node')} with {most} at most; plan without it, or name another partition in a profile"
        )

    def _minutes(self, shard: Shard, profile: Profile) -> float:
        most = max((node.minutes for node in self.nodes), default=UNLIMITED) - MARGIN
        if shard.minutes > most:
            raise UsageError(
                f"--on slurm: {shard} is expected to take {shard.minutes:.0f} minutes ({shard.basis}), and jobs in the partition "
                f"{self.partition} end after {most + MARGIN:.0f}, {MARGIN} of which are needed to end in good order"
            )
        return min(profile.minutes.limit(shard.minutes), most)


def _refuse(profile: Profile, key: str, problem: str) -> NoReturn:
    if profile.document is None:
        raise UsageError(f"--on slurm: {problem}")
    raise profile.document.error(problem, key=key)
