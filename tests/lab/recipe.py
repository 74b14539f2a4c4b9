"""How the node image is made: packages, kernel, engine, disk. `image.py` caches the result.

The text of this file is part of the cache key: a change here rebuilds the image.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .progress import LabError, step

HERE = Path(__file__).parent
#: Each one wheel for each interpreter; where they are on the node, outside of its Python path.
ENGINES = {HERE / "xray.txt": "opt/xray", HERE / "hysteria.txt": "opt/hysteria"}

# Python of each suite: the engine's wheel must match it. A shared one has more software on it.
SUITES = {"bookworm": "3.11", "trixie": "3.13", "bookworm-shared": "3.11"}

# What a small server has. What the role needs beyond it comes from the repository below.
NODE_PACKAGES = (
    "systemd systemd-sysv dbus udev openssh-server sudo python3 python3-apt "
    "iproute2 iputils-ping ethtool kmod procps nftables conntrack iperf3 logrotate"
).split()

# The node has no internet: a local repository has these and what they need.
REPOSITORY_PACKAGES = (
    "python3-nftables python3-systemd python3-yaml python3-venv python3-pip "
    "python3-setuptools python3-wheel"
).split()

# What others have on such a node, too, and what of it does not start before somebody asks for it.
SHARED_PACKAGES = (
    "ufw firewalld docker.io netplan.io iptables haproxy nginx libnginx-mod-stream socat"
).split()
SHARED_UNITS = (
    "docker.service docker.socket containerd.service firewalld.service ufw.service "
    "haproxy.service nginx.service"
).split()

# Slow under emulation and of no use on a node that lives for minutes.
MASKED_UNITS = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer "
    "e2scrub_reap.service fstrim.timer getty@tty1.service serial-getty@ttyS0.service "
    "systemd-pstore.service systemd-update-utmp.service systemd-update-utmp-runlevel.service "
    "logrotate.timer"
).split()

INITRD_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
DISK_SIZE = "6G"  # sparse: only what is used occupies the cache

# Runs in mmdebstrap with the suite's own package lists at hand. $1 is the node's root.
FETCH_HOOK = """
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "{downloads}"
mkdir -p kernel busybox
kernel=$(apt-cache depends --important linux-image-cloud-amd64 | sed -n 's/.*Depends: //p')
(cd kernel && apt-get -qq download "$kernel")
(cd busybox && apt-get -qq download busybox-static)
apt-get -qq --yes --no-install-recommends --download-only \
    -o APT::Keep-Downloaded-Packages=true install {packages}
mkdir -p "$1/opt/apt-repo"
mv "$1"/var/cache/apt/archives/*.deb "$1/opt/apt-repo/"
"""

MGMT_UNIT = """\
[Unit]
Description=Management network of the lab (SSH only, no default route)
DefaultDependencies=no
Before=network.target ssh.service
After=systemd-remount-fs.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip link set lo up
ExecStart=/sbin/ip link set eth0 up
ExecStart=/sbin/ip address replace 10.0.2.15/24 dev eth0

[Install]
WantedBy=sysinit.target
"""

INITRD_INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /dev /root
/bin/busybox mount -t devtmpfs dev /dev
for module in {modules}; do /bin/busybox insmod /modules/$module || exec /bin/busybox sh; done
/bin/busybox mount -t ext4 -o rw,noatime,noinit_itable /dev/vda /root
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
"""


def build(into: Path, suite: str) -> None:
    """Make disk.raw, vmlinuz, initrd, key, key.pub and host_key.pub in `into` (an empty folder).

    Raises LabError with the failing command's last lines.
    """
    root, downloads = into / "root", into / "downloads"
    downloads.mkdir()
    release, _dash, shared = suite.partition("-")
    packages = [*NODE_PACKAGES, *(SHARED_PACKAGES if shared else ())]
    with step(f"image 1/5: Debian {suite} from packages"):
        hook = FETCH_HOOK.format(downloads=downloads, packages=" ".join(REPOSITORY_PACKAGES))
        _run(
            ["mmdebstrap", "--mode=root", "--variant=minbase"]
            + [f"--include={','.join(packages)}", f"--customize-hook={hook}"]
            + [release, str(root)]
        )
        if shared:
            _run(["systemctl", f"--root={root}", "disable", *SHARED_UNITS])
    with step("image 2/5: kernel and initial RAM disk"):
        _kernel(into, root, downloads)
    with step("image 3/5: engines"):
        for requirement, where in ENGINES.items():
            _engine(requirement, root / where, downloads / requirement.stem, SUITES[suite])
    with step("image 4/5: configuration"):
        _configure(into, root)
    with step("image 5/5: disk"):
        disk = into / "disk.raw"
        _run(["mke2fs", "-q", "-t", "ext4", "-L", "node", "-d", str(root), str(disk), DISK_SIZE])
    shutil.rmtree(root)
    shutil.rmtree(downloads)


def _kernel(into: Path, root: Path, downloads: Path) -> None:
    """Unpack the distribution's kernel: image beside the disk, modules into the root."""
    unpacked = downloads / "kernel" / "root"
    _run(["dpkg-deb", "-x", str(_only(downloads / "kernel", "*.deb")), str(unpacked)])
    shutil.copy(_only(unpacked / "boot", "vmlinuz-*"), into / "vmlinuz")
    modules = next(
        p for p in (unpacked / "lib/modules", unpacked / "usr/lib/modules") if p.is_dir()
    )
    version = _only(modules, "*").name
    shutil.copytree(modules / version, root / "usr/lib/modules" / version, symlinks=True)
    _run(["depmod", "-b", str(root), version])

    tree = downloads / "initrd"
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    busybox = downloads / "busybox" / "root"
    _run(["dpkg-deb", "-x", str(_only(downloads / "busybox", "*.deb")), str(busybox)])
    shutil.copy(next(busybox.glob("**/bin/busybox")), tree / "bin/busybox")
    order: list[str] = []
    for module in INITRD_MODULES:
        shown = _run(["modprobe", "-d", str(root), "-S", version, "--show-depends", module])
        for line in shown.splitlines():
            if line.startswith("insmod "):  # "builtin NAME" needs nothing
                source = Path(line.split()[1])
                if source.name not in order:
                    order.append(source.name)
                    shutil.copy(source, tree / "modules" / source.name)
    init = tree / "init"
    init.write_text(INITRD_INIT.format(modules=" ".join(order)))
    init.chmod(0o755)
    pack = 'find . | cpio --quiet -o -H newc | zstd -q -3 > "$1"'
    _run(["sh", "-ec", pack, "sh", str(into / "initrd")], cwd=tree)


def _engine(requirement: Path, where: Path, downloads: Path, python: str) -> None:
    """Put an engine's extension module where nothing finds it that is not told to."""
    _run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        + [f"--python-version={python}", "--platform=manylinux2014_x86_64"]
        + ["--require-hashes", "-r", str(requirement), "-d", str(downloads)]
    )
    with zipfile.ZipFile(_only(downloads, "*.whl")) as wheel:
        wheel.extractall(where)


def _configure(into: Path, root: Path) -> None:
    """SSH keys, management network, package source, a quiet boot."""
    for name, comment in (("key", "lab"), ("host_key", "node")):
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(into / name)])
    _write(root / "root/.ssh/authorized_keys", (into / "key.pub").read_text(), 0o600)
    for stock in (root / "etc/ssh").glob("ssh_host_*"):
        stock.unlink()
    shutil.move(into / "host_key", root / "etc/ssh/ssh_host_ed25519_key")
    shutil.copy(into / "host_key.pub", root / "etc/ssh/ssh_host_ed25519_key.pub")
    _write(root / "etc/ssh/sshd_config.d/lab.conf", "UseDNS no\nMaxSessions 100\n")

    _write(root / "etc/dpkg/dpkg.cfg.d/lab", "force-unsafe-io\n")  # the disk is thrown away
    repository = root / "opt/apt-repo"
    (repository / "Packages").write_text(_run(["apt-ftparchive", "packages", "."], cwd=repository))
    for stock in (root / "etc/apt").glob("sources.list*"):
        stock.unlink() if stock.is_file() else shutil.rmtree(stock)
    _write(root / "etc/apt/sources.list.d/lab.list", "deb [trusted=yes] file:///opt/apt-repo ./\n")
    _run(["chroot", str(root), "apt-get", "-qq", "update"])

    units = root / "etc/systemd/system"
    _write(units / "lab-mgmt.service", MGMT_UNIT)
    (units / "sysinit.target.wants").mkdir(exist_ok=True)
    (units / "sysinit.target.wants/lab-mgmt.service").symlink_to("../lab-mgmt.service")
    for unit in MASKED_UNITS:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (root / "var/log/journal").mkdir(exist_ok=True)  # keep the journal over a reboot
    _write(root / "etc/hostname", "node\n")
    _write(root / "etc/hosts", "127.0.0.1 localhost node\n::1 localhost node\n")
    _write(root / "etc/machine-id", "")
    _write(root / "etc/resolv.conf", "")
    _write(root / "etc/fstab", "/dev/vda / ext4 noatime 0 0\n")


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    path.write_text(text)
    path.chmod(mode)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise LabError(f"expected one {pattern} in {folder}, found {len(found)}")
    return found[0]


def _run(command: list[str], cwd: Path | None = None) -> str:
    """Run a host command and return what it printed."""
    try:
        done = subprocess.run(command, cwd=cwd, text=True, capture_output=True)
    except FileNotFoundError as error:
        raise LabError(
            f"{command[0]} is missing: install the packages in {HERE / 'packages.txt'}"
        ) from error
    if done.returncode:
        tail = " | ".join(done.stderr.strip().splitlines()[-4:])
        raise LabError(f"{command[0]} failed with {done.returncode}: {tail}")
    return done.stdout
