"""Ten faults on the lab node with the real engine, one by one, and what an operator is told.

`status`, `doctor` and the journal must name the right one with its remedy and nothing else, and be
quiet again when it is undone.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Collection, Sequence
from contextlib import closing
from types import TracebackType
from typing import Any, NamedTuple

import yaml

from lab import Lab, LabError
from lab.labnode import GUEST
from lab.progress import step
from lab.streams import ECHO, Target, connect, echoes
from lab.users import SERVICE_PORTS
from vff_qos.core.health.findings import DEGRADED, EXIT_CODES, OK
from vff_qos.runfile import WRITE_S

SERVER_CONFIG = "/etc/xray/config.json"
_SETTINGS, _POLICY = "/etc/vff-qos/settings.yml", "/etc/vff-qos/policy.yml"
_RESTART = "systemctl restart vff-qos-follow"
#: A bound of what is waited for, in seconds; an emulated node is busy with other things, too.
_WITHIN_S = 120
_LOG = "/var/log/xray/faults.log"  # nobody's
_PORT = 9999  # nobody's either
#: Connections: enough for a source that is silent, and too few for that.
_CALLS, _FEW = 12, 4
_SERVICE = {str(port) for port in SERVICE_PORTS}
_THEIRS = 0x17
_OVERWRITE = f"""nft -f - <<'END'
table inet theirs {{
    chain c {{
        type filter hook input priority 0; tcp dport {{ 443, 2053, 8443 }} ct mark set {_THEIRS}
    }}
}}
END"""
_FLUSH = "systemd-run -q --unit=lab-flush sh -c 'while nft flush ruleset; do sleep 1; done'"
#: A repair that reads our table while somebody deletes it.
_MAY_FAIL = "repair_failed"
#: Connections that began while no line of theirs could be read, or believed.
_NOBODYS = "unowned"
#: What may be told of in passing, as long as it is over in the end.
_PASSING = frozenset({_MAY_FAIL, _NOBODYS})


class Fault(NamedTuple):
    """What is told of a fault: its kind, and words of its sentence and its remedy; ``doctors`` are
    kinds that doctor finds beside it, of the same cause."""

    kind: str
    sentence: str
    remedy: str
    doctors: tuple[str, ...] = ()


LOG_PATH = Fault("source_missing", _LOG, "name the log that", ("log_file",))
MASKED = Fault("masked", "addresses are masked", 'remove "maskAddress"')
MIXED = Fault("mixed", "share one stream", "its own file")
SILENT = Fault("source_silent", "silent while the service ports are busy", '"access" in its log')
PORTS = Fault("no_flow", "go to the service ports but to ", "set service_ports")
NO_CLASS = Fault("no_class", "without a class in the kernel", "'vff-qos bootstrap'")
STOPPED = Fault("follower", "the follower does not run", "systemctl start vff-qos-follow")
FLUSHED = Fault(
    "contended", "deleted again and again by 'nft'", "nft flush ruleset", ("kernel_objects",)
)
MARKS = Fault("marks_overwritten", "have lost the mark", "keep marks that are set", ("mark_rule",))
CONNTRACK = Fault("conntrack_full", "the conntrack table is full", "nf_conntrack_max=")
POLICY = Fault("policy", f"{_POLICY}:", "vff-qos check-config")


class Operator:
    """Who looks at the node: by one process there, see `guest/onlooker.py`."""

    def __init__(self, lab: Lab) -> None:
        lab.node.put(GUEST / "onlooker.py", "/opt/lab/onlooker.py")
        self._process = subprocess.Popen(
            lab.node.ssh_command("/usr/bin/python3 /opt/lab/onlooker.py"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._begun: list[str] = []

    def __enter__(self) -> Operator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=_WITHIN_S)

    def _ask(self, **job: object) -> Any:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(job), file=self._process.stdin, flush=True)
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        assert self._process.stderr
        raise LabError(f"on the node: {self._process.stderr.read().strip()}")

    def run(self, command: str) -> str:
        """What a shell command says; LabError if it fails."""
        said: str = self._ask(run=command)
        return said

    def sees(self, *faults: Fault, beside: Collection[str] = ()) -> None:
        """All three places tell of these, and of nothing else: ``beside`` are kinds that have not
        gone yet."""
        named = ", ".join(fault.kind for fault in faults)
        with step(f"until {named} is told"):
            entries = [self._told(fault) for fault in faults]
        with step(f"looking at {named}"):
            of_doctor = {kind for fault in faults for kind in fault.doctors}
            seen = self._look([fault.kind for fault in faults], {*beside, *of_doctor})
        for command in ("status", "doctor"):
            found, code = seen[command], seen[f"{command}_code"]
            allowed = {*(fault.kind for fault in faults), *beside}
            if command == "doctor":
                allowed |= of_doctor
            if surplus := _wrong(found).keys() - allowed:
                raise LabError(f"with {named} {command} also tells of {sorted(surplus)}: {found}")
            if (found["verdict"], code) != (DEGRADED, EXIT_CODES[DEGRADED]):
                raise LabError(f"with {named} {command} says {found['verdict']}, ends with {code}")
            for fault in faults:
                one = _wrong(found).get(fault.kind, {"sentence": "nothing", "remedy": ""})
                _check(command, fault, one["sentence"], one["remedy"])
        for fault, (sentence, remedy) in zip(faults, entries, strict=True):
            _check("the journal", fault, sentence, remedy)

    def _told(self, fault: Fault) -> tuple[str, str]:
        """Sentence and remedy in the journal.  The policy's are told by an entry of its own, whose
        remedy is in the catalog."""
        event = "policy_refused" if fault is POLICY else "degraded"
        finding = "" if fault is POLICY else fault.kind
        entries = self._ask(told=[[event, finding]], within_s=_WITHIN_S)
        for entry in reversed(entries):
            if (entry["VFF_QOS_EVENT"], entry.get("VFF_QOS_FINDING", "")) != (event, finding):
                continue
            if fault is POLICY:
                return entry["MESSAGE"], self.run(f"journalctl -q -x -n 1 VFF_QOS_EVENT={event}")
            self._begun.append(fault.kind)
            return entry["MESSAGE"], entry["VFF_QOS_REMEDY"]
        told = "\n".join(entry["MESSAGE"] for entry in entries)
        raise LabError(f"the journal should tell of {fault}, but says:\n{told}")

    def _look(self, kinds: Sequence[str], beside: Collection[str]) -> dict[str, Any]:
        seen: dict[str, Any] = self._ask(look=kinds, beside=[*beside], within_s=_WITHIN_S)
        return seen

    def is_content(self) -> None:
        """Nothing is wrong, and all that was told is told to be over, each once."""
        over = [["over", kind] for kind in self._begun]
        with step("until all is over"):
            entries = self._ask(told=over, within_s=_WITHIN_S)
            seen = self._look([], [])
        for command in ("status", "doctor"):
            if seen[f"{command}_code"] or _wrong(seen[command]):
                raise LabError(
                    f"nothing is wrong, but {command} ends with {seen[f'{command}_code']}: "
                    f"{_wrong(seen[command])}"
                )
        told: list[tuple[str, str]] = []
        for entry in entries:
            event, kind = entry["VFF_QOS_EVENT"], entry.get("VFF_QOS_FINDING", _MAY_FAIL)
            # What is over without having begun here was another's.
            if kind not in _PASSING and (event != "over" or (kind, "degraded") in told):
                told.append((kind, event))
        wanted = [(kind, event) for kind in self._begun for event in ("degraded", "over")]
        if sorted(told) != sorted(wanted):
            raise LabError(
                f"the journal should tell each of {sorted(self._begun)} once and once that it is "
                "over, but says:\n" + "\n".join(entry["MESSAGE"] for entry in entries)
            )


def _check(place: str, fault: Fault, sentence: str, remedy: str) -> None:
    if fault.sentence not in sentence or fault.remedy not in remedy:
        raise LabError(f"{place} should tell of {fault}, but says {sentence!r}; do: {remedy!r}")


def _wrong(found: dict[str, Any]) -> dict[str, Any]:
    return {one["kind"]: one for one in found["findings"] if one["level"] != OK}


class Clients:
    """Connections of some users through their tunnels, which send a byte when they are told to."""

    def __init__(self, lab: Lab, users: int) -> None:
        self.users = [user.email for user in lab.users[:users]]
        devices = [device for device in lab.devices if device.user.email in self.users]
        self._internet, self._ports = lab.node.internet, [d.target_port for d in devices]
        self._target = Target(self._internet, self._ports)
        self._socks: list[socket.socket] = []

    def open(self, count: int) -> None:
        """So many more connections, by the users in turn."""
        for number in range(count):
            port = self._ports[number % len(self._ports)]
            self._socks.append(connect(self._internet, port, ECHO))
        self.send()

    def send(self) -> None:
        """A byte on each, there and back."""
        if not all(map(echoes, self._socks)):
            raise LabError("a connection through a tunnel does not come through")

    def hang_up(self) -> None:
        """End all connections."""
        while self._socks:
            self._socks.pop().close()

    def close(self) -> None:
        """End everything."""
        self.hang_up()
        self._target.close()


class Seeds:
    """The faults, each with what undoes it."""

    def __init__(self, lab: Lab, operator: Operator, clients: Clients) -> None:
        self._lab, self._operator, self._clients = lab, operator, clients
        self._run = operator.run

    def all(self) -> None:
        """Raises LabError with what was expected and what was told."""
        # What other steps did is over: it is told for ten minutes, and what comes back for longer.
        self._run(f"systemctl stop vff-qos-follow; rm -f /run/vff-qos/told.json; {_RESTART}")
        self._clients.open(_CALLS)
        self._lab.await_marks(_CALLS)
        self._operator.is_content()
        self._flushed()
        self._class_deleted()
        self._overwritten()
        self._of_the_engine()
        self._policy()
        self._operator.is_content()

    def _flushed(self) -> None:
        self._run(_FLUSH)
        self._operator.sees(FLUSHED, beside={_MAY_FAIL})
        # The next fault stops the agent, which would leave the last flush unmended.
        until = "until nft list table inet vff_qos >/dev/null 2>&1; do sleep 1; done"
        self._run(f"systemctl stop lab-flush; timeout {_WITHIN_S} sh -c '{until}'")

    def _class_deleted(self) -> None:
        email = self._clients.users[0]
        said = self._run(f"vff-qos status --json {email} || test $? = 1")
        (user,) = json.loads(said)["users"]
        self._run(
            f"systemctl stop vff-qos-follow && tc class del dev wan0 classid {user['class']} && "
            "systemctl start vff-qos-gc"
        )
        self._operator.sees(NO_CLASS, STOPPED)
        self._run("systemctl start vff-qos-follow && systemctl start --no-block vff-qos-gc")

    def _overwritten(self) -> None:
        """Half a minute after its start the agent counts marks; later that comes more seldom, by
        what it costs."""
        self._run(_OVERWRITE)
        self._clients.send()
        self._operator.sees(MARKS)
        self._clients.hang_up()
        self._run(f"nft delete table inet theirs; conntrack -D -m {_THEIRS} 2>/dev/null")

    def _full(self, beside: Collection[str]) -> None:
        size = "net.netfilter.nf_conntrack_max"
        most = self._run(f"sysctl -n {size}").strip()
        # Twice as many as there may be: what ends meanwhile leaves no room.
        self._run(f"sysctl -qw {size}=$(($(sysctl -n net.netfilter.nf_conntrack_count) / 2))")
        try:
            self._operator.sees(CONNTRACK, beside=beside)
        finally:
            self._run(f"sysctl -qw {size}={most}")

    def _of_the_engine(self) -> None:
        """What it logs where, and to which ports its users come."""
        settings = yaml.safe_load(self._run(f"cat {_SETTINGS}"))
        config = json.loads(self._run(f"cat {SERVER_CONFIG}"))

        def read(**other: object) -> str:
            return _write(_SETTINGS, yaml.safe_dump({**settings, **other})) + _RESTART

        def log(**other: str) -> str:
            logs = {**config, "log": {**config["log"], **other}}
            return _write(SERVER_CONFIG, json.dumps(logs, indent=1)) + "systemctl restart xray"

        self._run(f"cp -p {_SETTINGS} {_SETTINGS}.lab; cp -p {SERVER_CONFIG} {SERVER_CONFIG}.lab")
        file, *others = settings["sources"]
        self._run(read(sources=[{**file, "path": _LOG}, *others]))
        self._operator.sees(LOG_PATH)
        # That log is written from now on: the first fault is undone.
        self._run(log(access=_LOG, maskAddress="quarter"))
        self._clients.open(_FEW)
        self._operator.sees(MASKED, beside={_NOBODYS})
        self._clients.hang_up()
        # Much of it: what stands close to a masked line may be a stranger's text.
        self._run(log(access=_LOG, error=_LOG, loglevel="debug"))
        self._clients.open(2 * _CALLS)
        self._operator.sees(MIXED, beside={_NOBODYS})
        self._clients.hang_up()
        self._run(log(access="none"))
        self._clients.open(_CALLS)
        # Lines of an error log are told for ten minutes, or until the next agent.
        # While the silence is too short to be told.
        self._full(beside={MIXED.kind, SILENT.kind, _NOBODYS})
        self._operator.sees(SILENT, beside={MIXED.kind, _NOBODYS})
        self._clients.hang_up()
        self._run(f"mv {SERVER_CONFIG}.lab {SERVER_CONFIG}; systemctl restart xray; rm {_LOG}")
        ports = [port for port in settings["service_ports"] if str(port) not in _SERVICE]
        self._run(read(service_ports=[_PORT, *ports]))
        self._caught_up()
        self._clients.open(_CALLS)
        self._operator.sees(PORTS)
        self._clients.hang_up()
        # The kernel knows for two minutes more of connections that were nobody's.
        self._run(f"mv {_SETTINGS}.lab {_SETTINGS} && conntrack -F && {_RESTART}")

    def _caught_up(self) -> None:
        """Until the agent has read all that was written before: that says nothing of now."""
        with step("until the agent has caught up"):
            until = time.monotonic() + _WITHIN_S
            while time.monotonic() < until:
                # It ends with 1 while something is wrong.
                told = json.loads(self._run("vff-qos status --json || test $? = 1"))["follower"]
                # Its second report is of a time when it had read.
                if told is not None and told["written"] - told["started"] > WRITE_S:
                    return
                time.sleep(1.0)
        raise LabError("the agent does not tell how it is")

    def _policy(self) -> None:
        self._run(f"cp -p {_POLICY} {_POLICY}.lab && sed -i 0,/mbit/s//mbps/ {_POLICY}")
        try:
            # That the ports are right again is believed after half a minute.
            self._operator.sees(POLICY)
        finally:
            self._run(f"mv {_POLICY}.lab {_POLICY}")


def _write(path: str, text: str) -> str:
    """A shell command that puts a text into a file, which keeps owner and mode."""
    return f"cat >{path} <<'LAB-END'\n{text}\nLAB-END\n"


def seed(lab: Lab, users: int) -> None:
    """All faults, with connections of the first ``users``."""
    with Operator(lab) as operator, closing(Clients(lab, users)) as clients:
        Seeds(lab, operator, clients).all()
