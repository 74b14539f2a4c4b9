"""`make bump VERSION=x.y.z`: one version, in all its places."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: semver.org, as Galaxy wants it.
VERSION = re.compile(r"(?:0|[1-9]\d*)(?:\.(?:0|[1-9]\d*)){2}(?:-[0-9A-Za-z.-]+)?")
#: File -> what stands before and after the version there, once.
PLACES = {
    "galaxy.yml": (r"^version: ", r"$"),
    "agent/pyproject.toml": (r'^version = "', r'"$'),
    "agent/src/vff_qos/__init__.py": (r'^__version__ = "', r'"$'),
    "README.md": (r"^follower ", r": pid"),
    "README.ru.md": (r"^follower ", r": pid"),
    "docs/INSTALL.md": (r"vff-qos-", r"\.tar\.gz"),
}


def bump(root: Path, version: str) -> list[str]:
    """Set the version; returns the files that changed.  ValueError if nothing was changed."""
    if not VERSION.fullmatch(version):
        raise ValueError(f"{version!r} is not a version such as 1.2.3 or 1.3.0-rc.1")
    new = {}
    for name, (before, after) in PLACES.items():
        text = (root / name).read_text()
        pattern = re.compile(rf"({before}){VERSION.pattern}(?={after})", re.MULTILINE)
        found, count = pattern.subn(lambda match: match[1] + version, text)
        if count != 1:
            raise ValueError(f"{name}: the version stands there {count} times, not once")
        if found != text:
            new[name] = found
    for name, text in new.items():
        (root / name).write_text(text)
    return list(new)


if __name__ == "__main__":
    try:
        changed = bump(ROOT, sys.argv[1] if len(sys.argv) > 1 else "")
    except ValueError as error:
        sys.exit(f"bump: {error}")
    print("\n".join(changed) or "no change")
