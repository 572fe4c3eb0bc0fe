"""Start, stop and ask a private Slurm in one folder; ``/etc/slurm`` is neither read nor written."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import random
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slurm.testbed import config
from slurm.testbed.config import Options, Ports
from sparsehpc.core.errors import SparseHPCError, UserError

#: Program to Debian package.
PROGRAMS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "srun": "slurm-wlm",
    "slurmdbd": "slurmdbd",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "munged": "munge",
}
NODES = ("c1", "c2", "g1")
_SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"])
#: Nothing in this database has to outlive the machine, so that it need not wait for the disk.
_FORGETFUL = (
    "--innodb-flush-log-at-trx-commit=0", "--innodb-log-file-size=8M", "--skip-innodb-doublewrite",
    "--loose-skip-sync-frm",
)  # fmt: skip
#: A Unix socket's path holds at most 107 bytes.
_LONGEST_FOLDER = 80


def missing_packages() -> list[str]:
    """Debian packages that are needed and not there."""
    return sorted({package for program, package in PROGRAMS.items() if shutil.which(program, path=_SEARCH) is None})


def default_folder() -> Path:
    """Folder of this user's testbed: short, because sockets live in it, and on a local disk."""
    return Path(tempfile.gettempdir()) / f"sparsehpc-testbed-{os.getuid()}"


@dataclasses.dataclass(frozen=True, slots=True)
class Testbed:
    """A private cluster in ``folder``.

    Parameters
    ----------
    folder
        Everything lives here: configuration, state, logs, sockets.
    """

    __test__ = False  # not a test class, whatever pytest thinks

    folder: Path

    @property
    def conf(self) -> Path:
        """The cluster's slurm.conf: what ``SLURM_CONF`` has to point at."""
        return self.folder / "slurm.conf"

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment in which Slurm's commands speak to this cluster."""
        values = {**(os.environ if base is None else base), "SLURM_CONF": str(self.conf)}
        values["PATH"] = os.pathsep.join(
            dict.fromkeys((values.get("PATH", "") + os.pathsep + _SEARCH).split(os.pathsep))
        )
        return values

    def up(self, options: Options | None = None) -> None:
        """Start everything and wait until all nodes are idle; nothing happens if it is up already.

        Raises
        ------
        UserError
            If packages are missing, a real Slurm answers here, or something does not start.
        """
        if lacking := missing_packages():
            raise UserError(
                f"the testbed needs packages that are not installed: {', '.join(lacking)}",
                f"apt-get install {' '.join(lacking)}",
            )
        if self.is_up():
            return
        self._refuse_beside_a_real_cluster()
        options = options or Options()
        self._prepare(options)
        try:
            self._start(options)
        except BaseException:
            self.down(keep_logs=True)
            raise

    def is_up(self) -> bool:
        """Whether the controller answers."""
        return self.conf.exists() and self.ask("scontrol", "ping").stdout.strip().endswith("UP")

    def down(self, *, keep_logs: bool = False) -> None:
        """Cancel jobs, stop all daemons, remove the folder (or everything but logs)."""
        if not self.folder.exists():
            return
        if self.is_up():
            self.ask("scancel", "--full", "--user", getpass.getuser())
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld", "slurmdbd", "mariadbd", "munged"):
            self.stop(name)
        for stray in self._job_processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)
        if keep_logs:
            self.conf.unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def status(self) -> dict[str, str]:
        """State of every daemon and node."""
        found = {name: "running" if self._pid(name) else "stopped" for name in ("munged", "mariadbd", "slurmdbd")}
        found["slurmctld"] = "running" if self.is_up() else "stopped"
        nodes = self.ask("sinfo", "-h", "-N", "-o", "%N %T").stdout.split("\n") if self.is_up() else []
        found.update(dict(line.split() for line in nodes if line))
        return found

    def ask(self, *command: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands against this cluster."""
        try:
            return subprocess.run(
                command, env=self.environment(), capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as error:
            return subprocess.CompletedProcess(command, 124, "", f"no answer within {error.timeout:.0f} s")

    def start(self, name: str) -> None:
        """Start one daemon: ``munged``, ``mariadbd``, ``slurmdbd``, ``slurmctld`` or ``slurmd-NODE``."""
        commands: dict[str, list[str]] = {
            "munged": [
                "munged", "--foreground", f"--socket={self.folder}/munge.socket", f"--key-file={self.folder}/munge.key",
                f"--pid-file={self.folder}/munged.real-pid", f"--log-file={self.folder}/munged.log",
                f"--seed-file={self.folder}/munge.seed",
            ],
            "mariadbd": [
                "mariadbd", "--no-defaults", f"--user={getpass.getuser()}", f"--datadir={self.folder}/database",
                f"--socket={self.folder}/mariadb.socket", "--bind-address=127.0.0.1",
                f"--port={self._ports().database}",
                # A server that starts removes all temporary tables of its folder, another server's in /tmp included.
                f"--tmpdir={self.folder}/temporary",
                f"--pid-file={self.folder}/mariadbd.real-pid", f"--init-file={self.folder}/init.sql",
                "--innodb-buffer-pool-size=32M", "--innodb-lock-wait-timeout=900", "--performance-schema=OFF",
                "--skip-log-bin", *_FORGETFUL,
            ],
            "slurmdbd": ["slurmdbd", "-D"],
            "slurmctld": ["slurmctld", "-D"],
            **{f"slurmd-{node}": ["slurmd", "-D", "-N", node] for node in NODES},
        }  # fmt: skip
        program = shutil.which(commands[name][0], path=_SEARCH)
        if program is None:
            raise UserError(f"{commands[name][0]} is not installed", f"apt-get install {PROGRAMS[commands[name][0]]}")
        environment = self.environment()
        environment["SLURM_CONF"] = str(self.folder / ("slurmdbd.conf" if name == "slurmdbd" else "slurm.conf"))
        # A shell between makes the daemon a child of init: it outlives us and leaves no zombie.
        line = f'setsid "$@" >>{shlex.quote(str(self.folder / name))}.out 2>&1 </dev/null & echo $!'
        started = subprocess.run(
            ["sh", "-c", line, "sh", program, *commands[name][1:]],
            env=environment, cwd="/", stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        pid = int(started.stdout)
        (self.folder / f"{name}.our-pid").write_text(f"{pid} {_started(pid)}")

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """Stop one daemon and wait until it is gone."""
        if (pid := self._pid(name)) is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if not _wait(lambda: self._pid(name) is None, 10.0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _wait(lambda: self._pid(name) is None, 5.0)
        (self.folder / f"{name}.our-pid").unlink(missing_ok=True)

    def wait_for_nodes(self, timeout_s: float = 60.0) -> None:
        """Wait until every node can take jobs."""

        def ready() -> bool:
            states = self.ask("sinfo", "-h", "-N", "-o", "%N %T").stdout.split("\n")
            pairs = dict(line.split() for line in states if line)
            return set(pairs) == set(NODES) and all(state in ("idle", "mixed", "allocated") for state in pairs.values())

        if not _wait(ready, timeout_s):
            raise SparseHPCError(f"the testbed's nodes do not come up; logs are in {self.folder}\n{self._log_tails()}")

    def _refuse_beside_a_real_cluster(self) -> None:
        environment = {key: value for key, value in os.environ.items() if key != "SLURM_CONF"}
        if os.environ.get("SLURM_CONF") not in (None, str(self.conf)):
            environment["SLURM_CONF"] = os.environ["SLURM_CONF"]
        try:
            answer = subprocess.run(
                ["scontrol", "ping"], env=environment, capture_output=True, text=True, timeout=15, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return
        if "UP" in answer.stdout.split():
            raise UserError(
                f"a real Slurm answers on this machine: {answer.stdout.strip()}",
                "use it: sparsehpc profile probe writes its profile; a testbed beside it would only confuse",
            )

    def _prepare(self, options: Options) -> None:
        if len(str(self.folder)) > _LONGEST_FOLDER:
            raise UserError(
                f"the folder {self.folder} is too long for sockets", f"at most {_LONGEST_FOLDER} characters"
            )
        if self.folder.exists():
            self.down()
        self.folder.mkdir(parents=True, mode=0o700)
        self.folder.chmod(0o755)  # jobs of the same user only, but munge wants to look at its parents
        for name in ("state", "temporary", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        ports = Ports(
            **dict(zip(Ports.__dataclass_fields__, _free_ports(len(Ports.__dataclass_fields__)), strict=True))
        )
        user, host, password = getpass.getuser(), socket.gethostname().split(".")[0], secrets.token_hex(16)
        self._write("ports.json", json.dumps(dataclasses.asdict(ports)))
        self._write("slurm.conf", config.slurm_conf(self.folder, ports, options, user, host))
        self._write("gres.conf", config.gres_conf())
        self._write("slurmdbd.conf", config.slurmdbd_conf(self.folder, ports, user, password), 0o600)
        self._write("init.sql", config.database_init(password), 0o600)
        self._write("munge.key", secrets.token_hex(128), 0o600)

    def _start(self, options: Options) -> None:
        self.start("munged")
        self._await("munged", (self.folder / "munge.socket").exists)
        if options.accounting:
            self._start_accounting(options)
        self.start("slurmctld")
        for node in NODES:
            self.start(f"slurmd-{node}")
        self._await("slurmctld", self.is_up)
        self.wait_for_nodes()

    def _start_accounting(self, options: Options) -> None:
        installer = shutil.which("mariadb-install-db", path=_SEARCH) or "mariadb-install-db"
        made = self.ask(
            installer, "--no-defaults", f"--datadir={self.folder}/database", f"--user={getpass.getuser()}",
            f"--tmpdir={self.folder}/temporary", "--auth-root-authentication-method=normal", "--skip-test-db",
            "--skip-name-resolve", *_FORGETFUL, timeout_s=300.0,
        )  # fmt: skip
        if made.returncode:
            raise SparseHPCError(f"mariadb-install-db failed:\n{made.stdout}\n{made.stderr}")
        self.start("mariadbd")
        self._await("mariadbd", lambda: _answers(self._ports().database))
        self.start("slurmdbd")
        self._await("slurmdbd", lambda: _answers(self._ports().database_daemon))
        user = getpass.getuser()
        self._must("sacctmgr", "-i", "add", "cluster", "testbed")
        self._must(
            "sacctmgr", "-i", "add", "account", "testbed", "cluster=testbed", "description=tests", "organization=tests"
        )
        self._must("sacctmgr", "-i", "add", "user", user, "account=testbed", "cluster=testbed")
        self._must(
            "sacctmgr", "-i", "modify", "user", user, "where", "account=testbed", "set",
            f"MaxSubmitJobs={options.max_submit}", "defaultaccount=testbed",
        )  # fmt: skip

    def _must(self, *command: str) -> None:
        # slurmdbd listens before it has made its tables, which takes a busy disk a while.
        answer = self.ask(*command, timeout_s=120.0)
        # sacctmgr ends with 1 where there was nothing to change.
        if answer.returncode and "othing" not in answer.stdout + answer.stderr:
            raise SparseHPCError(f"{' '.join(command)} failed:\n{answer.stdout}{answer.stderr}\n{self._log_tails()}")

    def _await(self, name: str, ready: Callable[[], bool], timeout_s: float = 60.0) -> None:
        def dead_or_ready() -> bool:
            if self._pid(name) is None:
                raise SparseHPCError(f"{name} ended at once; logs are in {self.folder}\n{self._log_tails()}")
            return ready()

        if not _wait(dead_or_ready, timeout_s):
            raise SparseHPCError(
                f"{name} did not start within {timeout_s:.0f} s; logs are in {self.folder}\n{self._log_tails()}"
            )

    def _log_tails(self) -> str:
        paths = sorted([*self.folder.glob("*.out"), *self.folder.glob("*.log")])
        tails = [(path.name, path.read_text(errors="replace").splitlines()[-5:]) for path in paths]
        return "\n".join("\n".join([f"[{name}]", *lines]) for name, lines in tails if lines)

    def _write(self, name: str, text: str, mode: int = 0o644) -> None:
        path = self.folder / name
        path.touch(mode=mode)
        path.chmod(mode)
        path.write_text(text)

    def _ports(self) -> Ports:
        return Ports(**json.loads((self.folder / "ports.json").read_text()))

    def _pid(self, name: str) -> int | None:
        """Id of a daemon we started and that still runs; an id that was given to another process does not count."""
        try:
            pid, started = map(int, (self.folder / f"{name}.our-pid").read_text().split())
        except (OSError, ValueError):
            return None
        return pid if _started(pid) == started else None

    def _job_processes(self) -> list[int]:
        """Processes of this cluster's jobs that outlived it."""
        needle = b"SLURM_CONF=" + str(self.conf).encode() + b"\0"
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    environment = (entry / "environ").read_bytes()
                    if needle in environment and b"\0SLURM_JOB_ID=" in environment:
                        found.append(int(entry.name))
        return found


def _started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where it is gone or only waits to be collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def _wait(ready: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(0.1)
    return ready()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def _free_ports(count: int) -> Sequence[int]:
    """Ports nobody listens on now; all are held until the last is found, so they differ.

    They lie below those that the kernel gives to outgoing connections, which could take one first.
    """
    try:
        first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first_ephemeral = 32768
    choose, found = random.SystemRandom(), list[int]()
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = choose.randrange(10000, max(first_ephemeral, 20000))
            candidate = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", port))
                found.append(port)
    return found
