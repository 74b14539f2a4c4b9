#!/usr/bin/env bash
# Puts the wheels that travel with the role into roles/qos/files/wheels: the agent's own and those
# that requirements.txt pins. The same sources give the same bytes, so that a node whose agent did
# not change sees no change.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-.venv/bin/python}
out=roles/qos/files/wheels
work=build/wheels
rm -rf "$work"
mkdir -p "$work/agent" "$work/out"

# Only files that belong to the package, with modes that do not depend on the umask.
cp agent/pyproject.toml "$work/agent/"
cp -r agent/src "$work/agent/src"
find "$work/agent" -depth \( -name __pycache__ -o -name '*.egg-info' \) -exec rm -r {} +
find "$work/agent" -type d -exec chmod 755 {} + -o -type f -exec chmod 644 {} +

SOURCE_DATE_EPOCH=315532800 "$python" -m pip wheel --quiet --no-deps --no-build-isolation \
  --no-index --wheel-dir "$work/out" "$work/agent"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --require-hashes \
  --dest "$work/out" --requirement roles/qos/files/requirements.txt
(cd "$work/out" && sha256sum -- *.whl >SHA256SUMS)

rm -rf "$out"
mkdir -p "$(dirname "$out")"
mv "$work/out" "$out"
chmod 755 "$out"
chmod 644 "$out"/*
echo "wheels: $(grep -c . "$out/SHA256SUMS") in $out"
