# SPDX-License-Identifier: MIT
"""What a run is about to replace, kept until the run is confirmed.

``DIRECTORY/files`` has the old ones below their paths, ``DIRECTORY/made`` the paths at which there
was nothing; roles/qos/files/confirm.sh puts it back.  What was kept first stays: a run that was cut
short and the next one are confirmed together.
"""

from __future__ import annotations

import os
import shutil


def keep(directory: str, path: str) -> None:
    """Keep a file or link that will be written or deleted.  Raises OSError."""
    copy = os.path.join(directory, "files", path.lstrip("/"))
    listing = os.path.join(directory, "made")
    # Settings hold secrets.
    os.makedirs(directory, 0o700, exist_ok=True)
    made: list[str] = []
    if os.path.exists(listing):
        with open(listing, encoding="utf-8") as file:
            made = file.read().splitlines()
    if path in made or os.path.lexists(copy):
        return
    if os.path.lexists(path):
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        shutil.copy2(path, copy, follow_symlinks=False)
        status = os.lstat(path)
        os.chown(copy, status.st_uid, status.st_gid, follow_symlinks=False)
    else:
        with open(listing, "a", encoding="utf-8") as file:
            file.write(f"{path}\n")
