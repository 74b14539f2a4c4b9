#!/usr/bin/env bash
# Prepares a Debian or Ubuntu machine for the make targets: packages and a virtual environment.
# Does nothing, quickly, when everything is there.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

# --- packages -------------------------------------------------------------------------------
if ! command -v apt-get >/dev/null; then
  say "this machine has no apt-get; the make targets for developers need Debian or Ubuntu"
  exit 1
fi
wanted=$(mktemp)
trap 'rm -f "$wanted"' EXIT
{
  cat <<'PACKAGES'
python3-venv
python3-yaml
python3-nftables
python3-systemd
iproute2
nftables
conntrack
kmod
openssh-client
openssh-server
systemd
systemd-journal-remote
chromium
fonts-dejavu-core
haproxy
nginx
libnginx-mod-stream
prometheus
prometheus-node-exporter
PACKAGES
  if [ -f tests/lab/packages.txt ]; then sed 's/#.*//' tests/lab/packages.txt; fi
} | tr -s '[:space:]' '\n' | grep . | sort -u >"$wanted"

missing=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' | sed -n 's/^installed //p' |
  sort -u | comm -13 - "$wanted" | xargs)
if [ -n "$missing" ]; then
  as_root=()
  if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
  say "installing $missing"
  # A fresh machine has no package lists, an old one stale lists.
  "${as_root[@]}" apt-get -qq update
  # Tests start these themselves; as services of this machine they would take its ports.
  services=()
  for name in haproxy nginx prometheus prometheus-node-exporter; do
    if [[ " $missing " == *" $name "* ]]; then services+=("$name.service"); fi
  done
  # Ubuntu's is started by its socket.
  if [[ " $missing " == *" openssh-server "* ]]; then services+=(ssh.service ssh.socket); fi
  policy=/usr/sbin/policy-rc.d
  if [ "${#services[@]}" -gt 0 ] && [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
    trap '"${as_root[@]}" rm -f "$policy"; rm -f "$wanted"' EXIT
  fi
  # shellcheck disable=SC2086 # one word each
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 install $missing >&2
  if [ "${#services[@]}" -gt 0 ]; then "${as_root[@]}" systemctl --quiet disable "${services[@]}"; fi
fi

# --- virtual environment --------------------------------------------------------------------
# The distribution's interpreter, so that its python3-nftables and python3-systemd can be imported.
# The lab's clients run here, so the engine is installed, too.
stamp=.venv/.requirements
engines=(tests/lab/{xray,sing-box,hysteria}.txt)
if ! cat tests/requirements.txt "${engines[@]}" | cmp -s - "$stamp"; then
  say "installing the tools of tests/requirements.txt into .venv"
  if [ ! -x .venv/bin/python ]; then
    /usr/bin/python3 -m venv --system-site-packages .venv
  fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt >&2
  # A call of its own: it asks for hashes.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/lab/xray.txt >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/lab/sing-box.txt >&2
  # Not every interpreter has one; tests that need it are left out there.
  if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    -r tests/lab/hysteria.txt >&2; then
    say "there is no Hysteria for this interpreter: its tests are skipped"
  fi
  cat tests/requirements.txt "${engines[@]}" >"$stamp"
fi

# --- the tree in which ansible finds this checkout as vff.qos -----------------------------------
link=build/ansible_collections/vff/qos
mkdir -p "$(dirname "$link")"
if [ "$(readlink "$link" || echo none)" != ../../.. ]; then
  ln -sfn ../../.. "$link"
fi
