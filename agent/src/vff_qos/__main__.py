"""``python -m vff_qos``."""

import sys

from .cli import main

sys.exit(main())
