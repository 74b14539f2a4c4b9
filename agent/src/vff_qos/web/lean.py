"""What the page's process does without, for the memory that it costs."""

from __future__ import annotations

import sys

#: OpenSSL, which http.client and hashlib take where it is: 4 MiB for TLS that the page does not
#: speak. Python's own SHA-256 does.
_OPENSSL = ("ssl", "_hashlib")


def leave_out_openssl() -> None:
    """Before bottle is imported; for a process that serves the page and nothing else."""
    for name in _OPENSSL:
        # An import of it fails from now on, as where Python was built without it.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
