"""A throwaway node: a QEMU machine over a copy-on-write disk, reached by SSH on loopback.

Longer than 500 lines: booting the machine, talking to it and taking it down share its state.
"""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from . import image
from .internet import Internet
from .progress import LabError, say, step

REPOSITORY = Path(__file__).resolve().parents[2]
RUNTIME = REPOSITORY / "build" / "lab"
BOOT_TIMEOUT_S = 180.0
#: For an answer of sshd: under a busy hypervisor the emulated node stands still for many seconds.
PATIENCE_S = 60
PR_SET_PDEATHSIG = 1
# Without "enhanced rep movsb": emulation copies its bytes one by one. Leaving it out makes TCP
# three times and system calls that copy six times as fast. Without AES instructions the engine
# prefers ChaCha20, whose emulation is up to twice as fast.
CPU = "max,-erms,-aes"
# No work that only pays on real hardware: mitigations, zeroed allocations, self-tests.
# With norandmaps a program is at the same addresses each time, and what QEMU has translated of it
# stays good: to start one takes a quarter of the time.
KERNEL_OPTIONS = (
    "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off init_on_alloc=0 tsc=reliable "
    "cryptomgr.notests rcupdate.rcu_expedited=1 audit=0 norandmaps"
)
_SSH_FAILED = 255  # ssh(1): not the command's own exit status
PARALLEL = ("-accel", "tcg,thread=multi", "-smp", "2")
SINGLE = ("-accel", "tcg,thread=single", "-smp", "1")
COUNTED = ("-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0")
FIRST_NICE = -12  # 15 times the weight of a session of 0
SOCKET_PATH_MAX = 90  # sun_path holds 108 bytes and ssh appends a suffix of 17 while connecting


class Node:
    """One machine. As a context manager it lives as long as the block; see also `up` and `down`.

    `persistent` keeps the machine running after this process has ended (until `down`); otherwise
    the kernel kills it together with us, whatever the reason. A `counted` one has one processor and
    a clock that goes on by 1 ns with each instruction: what is measured on it does not depend on
    what else runs here, nor on caches, but everything takes longer.

    A node that shares this machine with much else shall have one processor (`single`), and comes
    first: the kernel rewrites its own code where the first or the last rule of a hook comes or
    goes, and another processor, whose thread was held up meanwhile, may still run the emulator's
    translation of what was there.  Then it panics.
    """

    def __init__(
        self,
        name: str = "node",
        *,
        suite: str = "bookworm",
        persistent: bool = False,
        runtime: Path = RUNTIME,
        memory_mib: int = 3072,
        counted: bool = False,
        single: bool = False,
        cpu: str = CPU,
        queues: int = 1,
    ) -> None:
        self.name = name
        self.suite = suite
        self.persistent = persistent
        self.dir = runtime / name
        self.memory_mib = memory_mib
        self.single = single
        self._emulation = COUNTED if counted else SINGLE if single else PARALLEL
        self.cpu = cpu
        self.queues = queues
        self.port = 0
        self.pid = 0
        self.boot_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._master: subprocess.Popen[bytes] | None = None
        self._signals: dict[int, Any] = {}
        self.internet = Internet(self.dir, None if persistent else die_with_parent())

    # -- life --------------------------------------------------------------------------------

    @classmethod
    def attach(cls, name: str = "node", runtime: Path = RUNTIME) -> Node:
        """The running persistent node called `name`. Raises LabError if there is none."""
        node = cls(name, persistent=True, runtime=runtime)
        if not node._load() or not node.alive():
            raise LabError(f"no node {name!r} is running (start it with: up --name {name})")
        return node

    def up(self) -> Node:
        """Boot a fresh node and wait until its units have started. Replaces a dead one's files."""
        if self._load() and self.alive():
            raise LabError(f"node {self.name!r} is already running (pid {self.pid}); take it down")
        base = image.ensure(self.suite)
        self.internet.down()
        self._clear()
        self.dir.mkdir(parents=True)
        try:
            with step(f"booting node {self.name!r}"):
                started = time.monotonic()
                self._boot(base)
                self._wait_until_up(started)
                self.boot_s = time.monotonic() - started
        except BaseException:
            self.down(keep_log=True)
            raise
        return self

    def down(self, *, keep_log: bool = False) -> None:
        """Stop the machine at once and delete its files. Harmless if there is none.

        Only a process that runs on our own disk overlay is ever killed.
        """
        self._stop_master()
        if not self.pid:
            self._load()
        if self.pid and self.alive():
            os.kill(self.pid, signal.SIGKILL)  # its disk is thrown away: nothing to flush
            deadline = time.monotonic() + 10
            while self.alive() and time.monotonic() < deadline:
                time.sleep(0.02)
        if self._process:
            self._process.wait()
            self._process = None
        self.pid = 0
        self.internet.down()
        if keep_log and (self.dir / "serial.log").exists():
            for path in self.dir.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != "serial.log":
                    path.unlink()
        else:
            self._clear()

    def alive(self) -> bool:
        """Is our machine running? (A process with its pid that is not ours does not count.)"""
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return str(self.overlay).encode() in command  # a zombie's command line is empty

    def reboot(self) -> float:
        """Reboot from inside and wait until it is up again. Returns the seconds that took."""
        before = self.ssh("cat /proc/sys/kernel/random/boot_id")
        with step(f"rebooting node {self.name!r}"):
            started = time.monotonic()
            self.run("systemctl reboot", check=False)  # the connection may die under the command
            self._stop_master()
            deadline = started + BOOT_TIMEOUT_S
            while True:
                if _answers_ssh(self.port):
                    done = self.run("cat /proc/sys/kernel/random/boot_id", check=False)
                    if done.returncode == 0 and done.stdout != before:
                        break
                if time.monotonic() > deadline:
                    raise LabError(f"node did not come back after its reboot: {self._serial()}")
                time.sleep(0.3)
            self._wait_until_up(started)
            return time.monotonic() - started

    def __enter__(self) -> Node:
        self._catch_signals()
        try:
            return self.up()
        except BaseException:
            self._release_signals()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.down()
        finally:
            self._release_signals()

    # -- use ---------------------------------------------------------------------------------

    def run(
        self,
        command: str,
        *,
        stdin: str | bytes | None = None,
        check: bool = True,
        timeout_s: float | None = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command as root on the node.

        Raises LabError with the end of its standard error if `check` and it failed, or on timeout.
        """
        data = stdin.encode() if isinstance(stdin, str) else stdin
        try:
            done = subprocess.run(
                ["ssh", *self._ssh_options(), "node", command],
                input=data if data is not None else b"",
                capture_output=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"on the node, after {timeout_s} s still running: {command}") from error
        result = subprocess.CompletedProcess(
            command, done.returncode, done.stdout.decode(), done.stderr.decode()
        )
        if check and result.returncode:
            tail = " | ".join((result.stderr or result.stdout).strip().splitlines()[-4:])
            if result.returncode == _SSH_FAILED:  # a kernel that hangs says so there
                tail += f"; on the console: {self._serial(20)}"
            raise LabError(f"on the node, {command!r} failed with {result.returncode}: {tail}")
        return result

    def ssh(self, command: str, *, timeout_s: float | None = 300) -> str:
        """Run a shell command as root on the node and return its standard output."""
        return self.run(command, timeout_s=timeout_s).stdout

    def ssh_command(self, *command: str) -> list[str]:
        """The argument vector of an interactive SSH client."""
        return ["ssh", *self._ssh_options(), "node", *command]

    def put(self, source: Path, target: str) -> None:
        """Copy a file or a folder's contents (and what links lead to) to `target` on the node."""
        parent = shlex.quote(target if source.is_dir() else os.path.dirname(target) or "/")
        where = [str(source), "."] if source.is_dir() else [str(source.parent), source.name]
        packed = subprocess.run(
            "tar --dereference --exclude=__pycache__ --owner=0 --group=0 -c -C".split()
            + where[:1]
            + ["--transform", f"s|^{source.name}$|{os.path.basename(target)}|"] * source.is_file()
            + [where[1]],
            check=True,
            capture_output=True,
        ).stdout
        self.run(f"mkdir -p {parent} && tar -C {parent} --no-overwrite-dir -x", stdin=packed)

    def write(self, target: str, text: str, mode: int = 0o644) -> None:
        """Write a text file on the node (parents are made)."""
        parent, path = shlex.quote(os.path.dirname(target)), shlex.quote(target)
        self.run(f"mkdir -p {parent} && cat >{path} && chmod {mode:o} {path}", stdin=text)

    def inventory(self, path: Path, host: str = "node") -> Path:
        """Write an Ansible inventory (YAML) with this node as `host`; return `path`."""
        variables = {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.dir / "key"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.dir / 'known_hosts'}",
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_timeout": PATIENCE_S,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = ["---", "all:", "  hosts:", f"    {host}:"]
        lines += [f"      {key}: {json.dumps(value)}" for key, value in variables.items()]
        path.write_text("\n".join(lines) + "\n")
        return path

    def clock_ahead_s(self) -> float:
        """How far the node's clock is ahead of this machine's, to some milliseconds."""
        program = "import time\nwhile input(): print(time.time(), flush=True)"
        best, ahead = float("inf"), 0.0
        with subprocess.Popen(
            self.ssh_command(f"/usr/bin/python3 -Sc {shlex.quote(program)}"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as clock:
            assert clock.stdin and clock.stdout
            for _ in range(10):
                asked = time.time()
                clock.stdin.write("?\n")
                there = float(clock.stdout.readline())
                took = time.time() - asked
                if took < best:
                    best, ahead = took, there - asked - took / 2
            clock.stdin.write("\n")
        return ahead

    # -- inside ------------------------------------------------------------------------------

    @property
    def overlay(self) -> Path:
        """The node's disk: what it has written on top of the image."""
        return self.dir / "disk.qcow2"

    def _boot(self, base: image.Image) -> None:
        shutil.copy(base.key, self.dir / "key")
        (self.dir / "key").chmod(0o600)
        _host(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"]
            + ["-b", str(base.disk), str(self.overlay)]
        )
        self.port = _free_port()
        taps = self.internet.up(self.queues)
        (self.dir / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {base.host_key}\n")
        # An interrupt for each direction of each queue, one for changes and one for control.
        many = f",mq=on,vectors={2 * len(taps) + 2}" if len(taps) > 1 else ""
        command = [
            *("qemu-system-x86_64", "-name", f"vff-lab-{self.name}", "-nodefaults"),
            *("-cpu", self.cpu, *self._emulation),
            *("-m", str(self.memory_mib), "-display", "none"),
            *("-serial", f"file:{self.dir / 'serial.log'}", "-device", "virtio-rng-pci"),
            *("-drive", f"file={self.overlay},if=none,id=disk,format=qcow2,cache=unsafe"),
            *("-device", "virtio-blk-pci,drive=disk"),
            # restrict: the node reaches nothing of the outside, not even this machine
            "-netdev",
            f"user,id=mgmt,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            *("-device", "virtio-net-pci,netdev=mgmt,romfile="),
            *("-netdev", f"tap,id=wan,{'fds' if many else 'fd'}={':'.join(map(str, taps))}"),
            # QEMU's main loop is the bottleneck; so it is asked half as often.
            *("-device", f"virtio-net-pci,netdev=wan,romfile=,ioeventfd=off,tx=timer{many}"),
            *("-kernel", str(base.kernel), "-initrd", str(base.initrd), "-append"),
            KERNEL_OPTIONS,
        ]
        with open(self.dir / "qemu.log", "wb") as log:
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us; we take the machine down
                    pass_fds=taps,
                    preexec_fn=None if self.persistent else die_with_parent(),
                )
            except FileNotFoundError as error:
                raise LabError(_missing("qemu-system-x86_64")) from error
            finally:
                for tap in taps:
                    os.close(tap)
        self.pid = self._process.pid
        # Sessions share this machine alike, whatever their nice values (sched(7), autogroup).
        autogroup = Path(f"/proc/{self.pid}/autogroup")
        if self.single and os.geteuid() == 0 and autogroup.exists():
            autogroup.write_text(f"{FIRST_NICE}\n")
        state = {"pid": self.pid, "port": self.port, "suite": self.suite, "image": str(base.path)}
        (self.dir / "state.json").write_text(json.dumps(state) + "\n")

    def _wait_until_up(self, started: float) -> None:
        while not _answers_ssh(self.port):
            if self._process and self._process.poll() is not None:
                log = (self.dir / "qemu.log").read_text().strip() or self._serial()
                raise LabError(f"the machine ended while booting: {log}")
            if time.monotonic() - started > BOOT_TIMEOUT_S:
                raise LabError(f"no SSH after {BOOT_TIMEOUT_S:.0f} s: {self._serial()}")
            time.sleep(0.1)
        self._start_master()
        state = self.run("systemctl is-system-running --wait", check=False).stdout.strip()
        if state != "running":
            failed = self.ssh("systemctl --failed --plain --no-legend").split("\n")
            units = ", ".join(line.split()[0] for line in failed if line)
            say(f"node {self.name!r} is {state}; failed units: {units or 'none'}")

    def _start_master(self) -> None:
        """One SSH connection that all commands share: a new one costs a second under emulation."""
        self._master = subprocess.Popen(
            ["ssh", *self._ssh_options(), "-M", "-N", "-o", "ControlPersist=no", "node"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=None if self.persistent else die_with_parent(),
        )
        deadline = time.monotonic() + PATIENCE_S
        while not self._control.exists():
            if self._master.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"cannot log in to node {self.name!r}: {self._serial()}")
            time.sleep(0.05)

    def _stop_master(self) -> None:
        if self._control.exists():
            subprocess.run(
                ["ssh", *self._ssh_options(), "-O", "exit", "node"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
            )
            self._control.unlink(missing_ok=True)
        if self._master:
            self._master.kill()  # our own child: at worst it has ended already
            self._master.wait()
            self._master = None

    @property
    def _control(self) -> Path:
        path = self.dir / "ssh.sock"
        if len(str(path)) > SOCKET_PATH_MAX:
            raise LabError(f"the path of {self.dir} is too long for a socket: use a shorter one")
        return path

    def _ssh_options(self) -> list[str]:
        options = {
            "ControlPath": self._control,
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": "root",
            "IdentityFile": self.dir / "key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.dir / "known_hosts",
            "StrictHostKeyChecking": "yes",
            "HostKeyAlias": f"[127.0.0.1]:{self.port}",
            "BatchMode": "yes",
            "ConnectTimeout": PATIENCE_S,
            "ServerAliveInterval": 10,
            "LogLevel": "ERROR",
        }
        result = ["-F", "none"]
        for key, value in options.items():
            result += ["-o", f"{key}={value}"]
        return result

    def _load(self) -> bool:
        """Read pid and port that an earlier process left; False if there is nothing."""
        try:
            state = json.loads((self.dir / "state.json").read_text())
        except FileNotFoundError:
            return False
        self.pid, self.port, self.suite = state["pid"], state["port"], state["suite"]
        return True

    def _clear(self) -> None:
        if self.dir.exists():
            shutil.rmtree(self.dir)

    def _serial(self, lines: int = 3) -> str:
        """The last words on the console, as one line."""
        try:
            text = (self.dir / "serial.log").read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return "(nothing on the console)"
        return " | ".join(line.strip() for line in text.strip().splitlines()[-lines:])

    def _catch_signals(self) -> None:
        """Turn a termination request into an exception, so that `__exit__` runs."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                self._signals[number] = signal.signal(number, _exit_on_signal)

    def _release_signals(self) -> None:
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        self._signals.clear()


def nodes(runtime: Path = RUNTIME) -> list[Node]:
    """Every node that has files under `runtime`, running or not."""
    found = [Node(path.parent.name, runtime=runtime) for path in runtime.glob("*/state.json")]
    for node in found:
        node._load()
    return sorted(found, key=lambda node: node.name)


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def die_with_parent() -> Callable[[], None]:
    """A function for the child, between fork and exec: be killed when the parent ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def arm() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we were armed
            os._exit(1)

    return arm


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers_ssh(port: int) -> bool:
    """Does an SSH server greet? (QEMU accepts connections long before the node does.)"""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as probe:
            return probe.recv(4) == b"SSH-"
    except OSError:
        return False


def _host(command: list[str]) -> None:
    try:
        done = subprocess.run(command, text=True, capture_output=True)
    except FileNotFoundError as error:
        raise LabError(_missing(command[0])) from error
    if done.returncode:
        raise LabError(f"{command[0]} failed: {done.stderr.strip()}")


def _missing(program: str) -> str:
    return f"{program} is missing: install the packages in {Path(__file__).parent}/packages.txt"
