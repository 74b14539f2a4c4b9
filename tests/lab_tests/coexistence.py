"""The role on a node that other software shares: the real ufw, firewalld, Docker, systemd-networkd
and netplan, with what they do to rules, qdiscs and devices; and real forwarders, whose ports are
customers.

``python -m lab_tests.coexistence [PART ...]`` boots a node of its own; `make test-platforms` runs
it. The WAN device is one end of a veth pair whose other end, the client's, is in a namespace of the
node. Two ports are a user each (`qos_services`): one of the node, one of a container behind
Docker's DNAT. Whatever the others do, both have their limits in both directions, and `bootstrap`
has nothing to change, within seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lab import Lab, LabError, Node, operate
from lab.progress import say, step
from lab.trials import settings_by_hand

from .scenario import HEAL_S, HIGHEST, LOWEST, Failed, exit_code

NODE, FAR, SECOND = "198.51.100.1", "198.51.100.2", "203.0.113.9"
MBIT = 1_000_000
UPLOAD, DOWNLOAD = 4 * MBIT, 6 * MBIT
#: Of the node itself, and of the container.
PORT, PUBLISHED = 5201, 5202
#: A customer's port of each forwarder, see docs/ENGINES.md.
FORWARDERS = {"haproxy": 8001, "nginx": 8002, "socat": 8003, "ssh": 8004}
VARIABLES = {
    "qos_if_wan": "v0",
    "qos_service_ports": [443],
    "qos_confirm_sec": 120,
    "qos_wan_ceil": "400mbit",
    "qos_services": {
        name: {"ports": [port], "protocol": "tcp", "upload": "4mbit", "download": "6mbit"}
        for name, port in {"node": PORT, "container": PUBLISHED, **FORWARDERS}.items()
    },
}
#: A client's network beside the node's WAN device, and what both ports answer.
WORLD = f"""
ip netns add far
ip link add v0 numtxqueues 2 numrxqueues 2 type veth peer name far0 netns far
ip address add {NODE}/24 dev v0
ip link set v0 up
ip netns exec far sh -c 'ip address add {FAR}/24 dev far0; ip link set far0 up; ip link set lo up'
mkdir -p /var/log/xray && touch /var/log/xray/access.log
systemd-run --quiet --unit iperf iperf3 --server --port {PORT}
"""
#: iperf3 and what it is linked with as the whole of a container's file system.
CONTAINER = f"""
systemctl start docker
mkdir -p /opt/image && cd /opt/image
for file in /usr/bin/iperf3 $(ldd /usr/bin/iperf3 | grep -o '/[^ ]*'); do
    mkdir -p .$(dirname $file) && cp -L $file .$file
done
mkdir -p tmp
tar c . | docker import - iperf
docker run --detach --restart always --security-opt apparmor=unconfined \\
    --publish {PUBLISHED}:5201 --name iperf iperf iperf3 --server
"""
#: Each forwards its port to the node's iperf3.
FORWARD = f"""
cat > /opt/haproxy.cfg <<'EOF'
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
listen customer
  bind :{FORWARDERS["haproxy"]}
  server target 127.0.0.1:{PORT}
EOF
cat > /opt/nginx.conf <<'EOF'
daemon off;
pid /run/nginx-lab.pid;
load_module /usr/lib/nginx/modules/ngx_stream_module.so;
events {{}}
stream {{ server {{ listen {FORWARDERS["nginx"]}; proxy_pass 127.0.0.1:{PORT}; }} }}
EOF
test -e /root/.ssh/forward || ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/forward
cat /root/.ssh/forward.pub >> /root/.ssh/authorized_keys
mkdir -p /etc/ssh/sshd_config.d /run/sshd
echo 'GatewayPorts yes' > /etc/ssh/sshd_config.d/forward.conf
systemctl reload ssh
run() {{ systemd-run --quiet --collect --unit "forward-$1" "${{@:2}}"; }}
run haproxy haproxy -db -f /opt/haproxy.cfg
run nginx nginx -c /opt/nginx.conf -e /var/log/nginx-lab.log
run socat socat TCP-LISTEN:{FORWARDERS["socat"]},fork,reuseaddr TCP:127.0.0.1:{PORT}
run ssh ssh -N -i /root/.ssh/forward -o StrictHostKeyChecking=no -o ExitOnForwardFailure=yes \\
    -R 0.0.0.0:{FORWARDERS["ssh"]}:127.0.0.1:{PORT} 127.0.0.1
for port in {" ".join(map(str, FORWARDERS.values()))}; do
    timeout 60 bash -c "until ss -Hntl sport = :$port | grep -q .; do sleep 0.5; done"
done
"""
UNFORWARD = f"""
systemctl stop {" ".join(f"forward-{name}" for name in FORWARDERS)}
rm /etc/ssh/sshd_config.d/forward.conf /root/.ssh/forward /root/.ssh/forward.pub
systemctl reload ssh
"""
#: The container comes later than its rules.
DOCKER = f"""
systemctl restart docker
timeout 120 ip netns exec far bash -c 'until exec 3<>/dev/tcp/{NODE}/{PUBLISHED}; do sleep 1; done'
"""
RESTART = "systemctl restart vff-qos-bootstrap vff-qos-follow"
NETWORKD = f"""
cat > /etc/systemd/network/50-v0.network <<'EOF'
[Match]
Name=v0
[Network]
Address={NODE}/24
[FairQueueingControlledDelay]
Parent=root
EOF
systemctl restart systemd-networkd
"""
AWAY = "systemctl stop vff-qos-follow vff-qos-bootstrap; vff-qos remove"
AGAIN = "tc qdisc del dev v0 root; systemctl start vff-qos-bootstrap vff-qos-follow"
#: What it has set would come back with the next change of the WAN device, and be a foreign root.
UNNETWORKD = f"""
rm /etc/systemd/network/50-v0.network
systemctl stop systemd-networkd
{AWAY}
{AGAIN}
"""
NETPLAN = f"""
cat > /etc/netplan/50-v0.yaml <<'EOF'
network:
  version: 2
  renderer: networkd
  ethernets:
    v0:
      addresses: [{NODE}/24]
      mtu: 1400
EOF
chmod 600 /etc/netplan/50-v0.yaml
netplan apply
"""
UNNETPLAN = "rm /etc/netplan/50-v0.yaml; netplan apply; ip link set v0 mtu 1500"
UFW = f"""
ufw allow 22/tcp
ufw allow {PORT}/tcp
ufw route allow proto tcp to any port 5201
ufw --force enable
ufw reload
"""
FIREWALLD = f"""
systemctl start firewalld
firewall-cmd --quiet --add-service ssh
firewall-cmd --quiet --permanent --add-port {PORT}/tcp
firewall-cmd --quiet --reload
firewall-cmd --quiet --complete-reload
"""
#: A packet that bears our mark must never be routed by it: nobody asked for that.
ROUTED_MARKS = "ip rule add pref 10 fwmark 0x51000000/0xff000000 blackhole"
#: Somebody's filters, which let packets go on.
_ALL = "protocol ip u32 match u32 0 0 action continue"
FILTERS = f"""
tc filter add dev v0 ingress pref 9 {_ALL}
tc filter add dev v0 egress pref 9 {_ALL}
"""
UNFILTERS = "tc filter del dev v0 ingress pref 9 && tc filter del dev v0 egress pref 9"
UPLINK = f"""
ip link add u0 type veth peer name u1
ip link set u0 up
ip address add {SECOND}/24 dev u0
ip route add default via 203.0.113.10 dev u0 metric 9
"""
BOND = f"""
ip link add bond0 type bond mode active-backup miimon 100
ip link set v0 down
ip address flush dev v0
ip link set v0 master bond0
ip link set bond0 up
ip address replace {NODE}/24 dev bond0
"""
UNBOND = f"ip link del bond0; ip address replace {NODE}/24 dev v0; ip link set v0 up"
VLAN = f"""
ip link add link v0 name v0.7 type vlan id 7
ip address del {NODE}/24 dev v0
ip address add {NODE}/24 dev v0.7
ip link set v0.7 up
ip netns exec far sh -ec 'ip link add link far0 name far7 type vlan id 7
ip address del {FAR}/24 dev far0
ip address add {FAR}/24 dev far7
ip link set far7 up'
"""
UNVLAN = f"""
ip link del v0.7
ip address add {NODE}/24 dev v0
ip netns exec far sh -ec 'ip link del far7; ip address add {FAR}/24 dev far0'
"""
BBR = "sysctl -qw net.ipv4.tcp_congestion_control"
#: What it is, what it does, how it ends.
DISTURBED = (
    (
        "nftables.service is restarted and flushes the ruleset",
        "systemctl restart nftables",
        DOCKER,  # whose rules are gone, too
    ),
    ("ufw is enabled and reloaded", UFW, "ufw --force disable"),
    (
        # It flushes Docker's rules, too, when it starts.
        "firewalld is started, and reloaded twice",
        FIREWALLD + DOCKER,
        "systemctl stop firewalld",
    ),
    ("Docker is restarted", DOCKER, ""),
    ("packets with our mark are not routed", ROUTED_MARKS, "ip rule del pref 10"),
    ("BBR", f"{BBR}=bbr", f"{BBR}=cubic"),
    ("another MTU", "ip link set v0 mtu 1300", "ip link set v0 mtu 1500"),
    ("somebody's filters at both hooks", FILTERS, UNFILTERS),
    ("a second uplink", UPLINK, "ip link del u0"),
    ("netplan apply", NETPLAN, UNNETPLAN),
)
#: Debian 12's `tc -j` prints what is no JSON for this one.
HFSC = f"{AWAY}; tc qdisc add dev v0 root handle 77: hfsc default 7"
MQ = f"""
{AWAY}
tc qdisc replace dev v0 root handle 77: mq
tc qdisc replace dev v0 parent 77:1 handle 78: fq limit 777
tc qdisc replace dev v0 parent 77:2 handle 79: fq
tc qdisc add dev v0 clsact
"""


def shell(node: Node, script: str) -> str:
    """Run the lines of a script; the first that fails ends it."""
    return node.ssh(f"set -e\n{script}")


def rate(node: Node, port: int, reverse: bool) -> float:
    """What a client moves in some seconds, in bit/s."""
    command = f"ip netns exec far iperf3 --client {NODE} --port {port} --json -t 4 -O 2"
    done = node.run(f"timeout 60 {command}{' --reverse' if reverse else ''}", check=False)
    found = json.loads(done.stdout or '{"error": "no answer"}')
    if "error" in found:
        raise Failed(f"iperf3 to port {port}: {found['error']}")
    return float(found["end"]["sum_received"]["bits_per_second"])


def held(node: Node, ports: tuple[int, ...]) -> list[str]:
    """What is not within its limit; says what was measured."""
    wrong, said = [], []
    for port in ports:
        for what, reverse, limit in (("upload", False, UPLOAD), ("download", True, DOWNLOAD)):
            measured = rate(node, port, reverse)
            said.append(f"{port} {what} {measured / MBIT:.2f}")
            if not LOWEST * limit <= measured <= HIGHEST * limit:
                wrong.append(f"port {port}, {what}: {measured / MBIT:.2f} of {limit / MBIT} Mbit/s")
    say(", ".join(said))
    return wrong


def check(node: Node, what: str, ports: tuple[int, ...] = (PORT, PUBLISHED)) -> None:
    """All of ours is whole within seconds, and limits hold."""
    started, plan = time.monotonic(), ""
    while plan != "no change\n":
        if time.monotonic() > started + HEAL_S:
            raise Failed(f"{what}: after {HEAL_S} s there is to do:\n{plan}")
        done = node.run("vff-qos bootstrap --plan", check=False)
        plan = done.stdout or done.stderr
    say(f"{what}: whole after {time.monotonic() - started:.1f} s")
    if held(node, ports) and (wrong := held(node, ports)):
        raise Failed(f"{what}: " + "; ".join(wrong))


@contextmanager
def world(node: Node, begin: str, end: str) -> Iterator[None]:
    """Something of others, and its end."""
    shell(node, begin)
    try:
        yield
    finally:
        if end:
            shell(node, end)


def disturbed(lab: Lab) -> None:
    """What others do while ours is in force."""
    for what, begin, end in DISTURBED:
        with step(what), world(lab.node, begin, end):
            check(lab.node, what)


def forwarders(lab: Lab) -> None:
    """What docs/ENGINES.md tells of forwarders: each customer's port has that customer's limits."""
    with step("forwarders"), world(lab.node, FORWARD, UNFORWARD):
        for name, port in FORWARDERS.items():
            check(lab.node, name, (port,))


def as_wan(lab: Lab, what: str, name: str, begin: str, end: str) -> None:
    """Another kind of WAN device."""
    with (
        step(what),
        world(lab.node, begin, end),
        settings_by_hand(lab, {"if_wan": name}, RESTART),
    ):
        check(lab.node, what, (PORT,))


def altname(lab: Lab) -> None:
    """The WAN device by an alternative name."""
    name = "enx0123456789ab-uplink"
    change = ("ip link property {} dev v0 altname " + name).format
    as_wan(lab, "an alternative name", name, change("add"), change("del"))


def networkd(lab: Lab) -> None:
    """systemd-networkd puts a qdisc of its own at the root, again with each restart: by default
    ours stays away and status says so; with consent it comes back."""
    what = "systemd-networkd owns the qdisc"
    with step(what), world(lab.node, NETWORKD, UNNETWORKD):
        time.sleep(5)
        told = lab.node.run("vff-qos status", check=False)
        root = lab.node.ssh("tc qdisc show dev v0 root").splitlines()[0]
        say(f"{root}; status {told.returncode}: {' | '.join(told.stdout.splitlines()[:3])}")
        if "fq_codel" in root and told.returncode != 2:
            raise Failed(f"{what}, and status ends with {told.returncode}:\n{told.stdout}")
        with settings_by_hand(lab, {"take_foreign_root": "true"}, RESTART):
            check(lab.node, what)
            lab.node.ssh("systemctl restart systemd-networkd; sleep 2")
            check(lab.node, f"{what}, and is restarted")


def foreign(lab: Lab) -> None:
    """A root that somebody has configured is named by the preflight, and stays as it is."""
    with step("a root of somebody's"), world(lab.node, HFSC, AGAIN):
        before = lab.node.ssh("tc qdisc show dev v0")
        try:
            operate.make("qos", lab.node.dir / "inventory" / "hosts.yml")
        except LabError as error:
            if "v0 has a root qdisc that somebody else configured (hfsc 77:)" not in str(error):
                raise
        else:
            raise Failed("a foreign root was taken without a word")
        after = lab.node.ssh("tc qdisc show dev v0")
        if after != before:
            raise Failed(f"a foreign root is now\n{after}")
    check(lab.node, "after it")


def restored(lab: Lab) -> None:
    """An mq with fq below it, and somebody's clsact with filters, are there again afterwards."""
    look = "tc qdisc show dev v0; tc filter show dev v0 ingress; tc filter show dev v0 egress"
    with step("an mq root with fq is restored"):
        shell(lab.node, MQ + FILTERS)
        before = lab.node.ssh(look)
        with settings_by_hand(lab, {"take_foreign_root": "true"}, RESTART):
            check(lab.node, "in the place of an mq with fq")
            lab.node.ssh("systemctl stop vff-qos-follow; vff-qos remove")
            after = lab.node.ssh(look)
            lab.node.ssh("tc qdisc del dev v0 root; tc qdisc del dev v0 clsact")
        if after != before:
            raise Failed(f"what was there before came back as\n{after}instead of\n{before}")


#: As names on the command line.
PARTS: dict[str, Callable[[Lab], None]] = {
    "forwarders": forwarders,
    "disturbed": disturbed,
    "networkd": networkd,
    "altname": altname,
    "vlan": lambda lab: as_wan(lab, "a VLAN as WAN", "v0.7", VLAN, UNVLAN),
    "bond": lambda lab: as_wan(lab, "a bond as WAN", "bond0", BOND, UNBOND),
    "foreign": foreign,
    "restored": restored,
}


def prepare(lab: Lab) -> None:
    """Others' software and its traffic, then the role."""
    with step("starting what shares the node"):
        shell(lab.node, WORLD)
        shell(lab.node, CONTAINER)
    operate.make("qos", operate.inventory(lab.node, lab.node.dir / "inventory", VARIABLES))
    check(lab.node, "deployed")


def main() -> None:
    """All of it, or the parts that are named."""
    wanted = sys.argv[1:] or list(PARTS)
    if unknown := set(wanted) - PARTS.keys():
        raise SystemExit(
            f"there is no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}"
        )
    with Lab("coexistence", suite="bookworm-shared") as lab:
        prepare(lab)
        for name in wanted:
            PARTS[name](lab)


if __name__ == "__main__":
    sys.exit(exit_code(main))
