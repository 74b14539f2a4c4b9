"""Where things of this checkout are, for tests wherever they lie in the tree."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AGENT = ROOT / "agent" / "src"
DOCS = ROOT / "docs"
PLUGINS = ROOT / "plugins"
ROLE = ROOT / "roles" / "qos"
SAMPLES = ROOT / "tests" / "samples"
