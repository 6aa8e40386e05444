"""``python -m canvas_asr.cli`` is the command ``canvas-asr``."""

import sys

from . import main

if __name__ == "__main__":  # a worker process imports this file under another name
    sys.exit(main())
