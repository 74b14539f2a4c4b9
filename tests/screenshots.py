"""``make screenshots``: pictures of the page for the documents, of a real node in a namespace."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from browser import Browser
from checkout import DOCS
from netns.harness import CLONE_NEWNET, LIBC, Client, run
from netns.page_node import PageNode, keep_sending
from netns.trees import TRACK, make_trees

PORT = 9472
_LOG = "/var/log/xray/access.log"
_NAMES = (
    "alice anna boris carol daria dmitri elena emil felix galina hanna igor irina ivan jana kate "
    "leo lena maria max mila nadia nina olga oscar paul peter rita sara timur ulla vera viktor yuri"
)
EMAILS = [f"{name}@example.com" for name in _NAMES.split()]
_POLICY = """plans:
  basic: {download: 20mbit, upload: 5mbit}
  pro: {download: 100mbit, upload: 50mbit, weight: 3}
match:
  - {pattern: "*a@example.com", plan: pro}
  - {pattern: "*", plan: basic}
users: {}
"""
#: Name, where, dark, width, height, language.
PICTURES = (
    ("page-now.png", "now", False, 1280, 1000, "en"),
    ("page-now-dark.png", "now", True, 1280, 1000, "ru"),
    ("page-users.png", "users", False, 1280, 860, "en"),
    ("page-user-dark.png", "user/alice%40example.com", True, 1280, 1240, "en"),
    ("page-history.png", "history", False, 1280, 640, "ru"),
    ("page-narrow.png", "now", False, 390, 844, "en"),
    ("page-narrow-dark.png", "users", True, 390, 844, "ru"),
    ("page-restricted.png", "restricted", False, 1280, 900, "en"),
)


def main() -> None:
    """Take all pictures into a directory: docs/images, or the one that is named."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "images"
    target.mkdir(parents=True, exist_ok=True)
    if LIBC.unshare(CLONE_NEWNET) != 0:
        raise SystemExit("screenshots: needs root (a network namespace of its own)")
    run("ip", "link", "set", "lo", "up")
    run("nft", "-f", "-", stdin=TRACK)
    make_trees()
    with tempfile.TemporaryDirectory(prefix="vff-qos-page-") as directory:
        node = PageNode(Path(directory))
        try:
            show(node, target)
        finally:
            node.close()


def show(node: PageNode, target: Path) -> None:
    """Fill a node with life and look at it."""
    node.program = "bench.follow"
    node.set(f"wan_ceil: 1gbit\nweb_bind: 127.0.0.1:{PORT}\n")
    node.write_policy(_POLICY)
    # Where an engine has it, for those who look; in the node's mount namespace alone.
    settings = node.directory / "settings.yml"
    settings.write_text(settings.read_text().replace(str(node.log), _LOG))
    place = f"mount -t tmpfs tmpfs /var/log; mkdir /var/log/xray; touch {_LOG}; "
    run(*node.within[:2], "sh", "-euc", f"{place} mount --bind {node.log} {_LOG}")
    node.remember(EMAILS, 400)
    node.start()
    node.come(EMAILS)
    node.come(EMAILS[:9])
    stranger = Client("::1", 4430)
    node.clients.append(stranger)
    node.write(stranger.line("oscar@example.com"), stranger.line("mallory@example.com"))
    node.run("limit", "boris@example.com", "--download", "300kbit", "--for", "2h",
             "--reason", "ticket 4711")  # fmt: skip
    node.run("block", "max@example.com", "--reason", "has not paid")
    subprocess.run(
        node.command("doctor", "--no-canary", "--keep"), stdout=subprocess.DEVNULL, check=False
    )
    node.serve(f"127.0.0.1:{PORT}")
    minors = node.minors()
    busy = [minors[name] for name in EMAILS[:26]]
    threading.Thread(target=keep_sending, args=(400, busy), daemon=True).start()
    with Browser() as browser:
        for number, (name, where, dark, width, height, language) in enumerate(PICTURES):
            browser.look(dark, width, height)
            browser.keep(language=language, range="day_31")
            browser.open(f"http://127.0.0.1:{PORT}/#/{where}")
            browser.until("document.querySelector('main').innerText.length > 60")
            # A minute until the plots have something to show.
            time.sleep(70 if number == 0 else 8)
            browser.picture(target / name)
            print(target / name, flush=True)
        if browser.complaints:
            raise SystemExit(f"screenshots: {browser.complaints}")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
    main()
