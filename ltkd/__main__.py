"""``python -m ltkd``: the ltkd command, as torchrun starts it."""

import sys

from .cli import main

sys.exit(main())
