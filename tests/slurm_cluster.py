"""A Slurm cluster of the tests' own on loopback, from Debian's packages: a controller, and nodes whose GPUs are null devices.

    with slurm_cluster.cluster() as slurm:     # SLURM_CONF is slurm.configuration
        slurm.drain("n2", "a test")

Nothing of it is shared with a Slurm that may be installed: ports, folder, munge key and socket are its own. Its daemons believe
that this machine is called localhost, which resolves everywhere and to loopback. They stay in the foreground, and are ended with
the context.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PACKAGES = "slurmctld slurmd slurm-client munge"
PARTITION = "h200"
PATIENCE = 60.0  # seconds, on a machine that does other things too

_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol")
_NULL = os.makedev(1, 3)
# In a namespace of names of its own.
_CALLED_LOCALHOST = ("unshare", "--uts", "sh", "-c", 'hostname localhost && exec "$@"', "sh")

_CONFIGURATION = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout=300
KillWait=5
ReturnToService=2
MailProg=/bin/true
"""


@dataclass
class Cluster:
    folder: Path

    @property
    def configuration(self) -> Path:
        return self.folder / "slurm.conf"

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout

    def drain(self, node: str, reason: str) -> None:
        self.ask("scontrol", "update", f"nodename={node}", "state=drain", f"reason={reason}")

    def fail(self, node: str) -> None:
        """As one that nobody reaches any more: its jobs end with NODE_FAIL."""
        self.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=failed")

    def resume(self, node: str) -> None:
        self.ask("scontrol", "update", f"nodename={node}", "state=resume")

    def live_jobs(self) -> list[str]:
        return self.ask("squeue", "--noheader", "--format=%i %j %T").splitlines()

    def processes(self) -> list[psutil.Process]:
        """All that were submitted to it, or started by what was: their environment names its configuration."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                named = process.environ().get("SLURM_CONF") == str(self.configuration)
                if named and process.name() not in _DAEMONS and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


_DAEMONS = ("slurmctld", "slurmd", "munged", "slurmscriptd", "slurmstepd")


def why_not() -> str | None:
    """Why there can be no cluster here, None where there can."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no Slurm here ({', '.join(missing)} missing): apt-get install {PACKAGES}"
    if os.geteuid() != 0:
        return "Slurm's daemons start jobs as their users, for which they have to run as root"
    if subprocess.run([*_CALLED_LOCALHOST, "true"], capture_output=True, check=False).returncode:
        return "this machine cannot be called localhost for a while (unshare --uts), and its own name may resolve to anything"
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.mknod(Path(folder) / "gpu", 0o666 | stat.S_IFCHR, _NULL)
        except OSError as problem:
            return f"no device can be made here, which a GPU of Slurm has to have: {problem.strerror}"
    return None


@contextlib.contextmanager
def cluster(nodes: int = 2, gpus: int = 8) -> Iterator[Cluster]:
    """Nodes n1, n2, ... with so many GPUs each, all of the partition h200, whose jobs may take 4 hours."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the path of a socket may have 107 characters
    folder.chmod(0o755)  # munged is another user
    running: list[subprocess.Popen[bytes]] = []
    made = Cluster(folder)
    environment = {**os.environ, "SLURM_CONF": str(made.configuration)}

    def start(*command: str, user: str = "root") -> None:
        with (folder / "log" / f"{len(running)}-{command[0]}").open("wb") as log:
            running.append(
                subprocess.Popen(
                    command, env=environment, stdout=log, stderr=log, start_new_session=True, user=user, group=user,
                    extra_groups=[],
                )
            )  # fmt: skip

    try:
        _prepare(folder, nodes, gpus)
        start(
            "munged", "--foreground", "--force",
            f"--key-file={folder}/munge/key", f"--socket={folder}/munge/socket", f"--pid-file={folder}/munge/pid",
            f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed",
            user="munge",
        )  # fmt: skip
        _wait(lambda: (folder / "munge" / "socket").exists(), folder, "munged has no socket")
        start(*_CALLED_LOCALHOST, "slurmctld", "-D", "-c")
        for number in range(1, nodes + 1):
            start(*_CALLED_LOCALHOST, "slurmd", "-D", "-N", f"n{number}")
        _wait(lambda: _idle(made) == nodes, folder, "not all nodes are idle")
        yield made
    finally:
        with contextlib.suppress(subprocess.SubprocessError, RuntimeError):
            made.ask("scancel", "--user=root")
            _wait(lambda: not made.live_jobs(), folder, "jobs do not end")
        for process in reversed(running):
            _end(process)
        _end_all_of(made)
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(folder: Path, nodes: int, gpus: int) -> None:
    for name in ("state", "log", "devices", *(f"spool/n{number}" for number in range(1, nodes + 1))):
        (folder / name).mkdir(parents=True)
    munge = folder / "munge"
    munge.mkdir(mode=0o755)
    (munge / "key").write_bytes(os.urandom(1024))
    (munge / "key").chmod(0o400)
    for path in (munge, munge / "key"):
        shutil.chown(path, "munge", "munge")
    for number in range(gpus):  # regular files are refused, and so are GPUs without files
        os.mknod(folder / "devices" / f"gpu{number}", 0o666 | stat.S_IFCHR, _NULL)
    (folder / "gres.conf").write_text(f"Name=gpu Type=h200 File={folder}/devices/gpu[0-{gpus - 1}]\n")
    ports = _free_ports(nodes + 1)
    lines = [_CONFIGURATION.format(folder=folder, controller_port=ports[0])]
    for number, port in enumerate(ports[1:], 1):
        lines.append(
            f"NodeName=n{number} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=16 Sockets=1 CoresPerSocket=16 "
            f"ThreadsPerCore=1 RealMemory=2000 Gres=gpu:h200:{gpus} State=UNKNOWN\n"
        )
    lines.append(f"PartitionName={PARTITION} Nodes=ALL Default=YES MaxTime=240 OverSubscribe=NO State=UP\n")
    (folder / "slurm.conf").write_text("".join(lines))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _idle(made: Cluster) -> int:
    with contextlib.suppress(subprocess.SubprocessError):
        return made.ask("sinfo", "--noheader", "--Node", "--format=%T").split().count("idle")
    return 0


def _wait(condition: Callable[[], bool], folder: Path, problem: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted((folder / "log").iterdir()))
            raise RuntimeError(f"{problem} after {PATIENCE:g} s\n{logs}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_all_of(made: Cluster) -> None:
    """Steps that outlived their slurmd, and what they started."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("SLURM_CONF") == str(made.configuration) and process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)
