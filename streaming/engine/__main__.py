"""`python -m streaming.engine SOCKET --model CHECKPOINT`: one worker."""

import sys

from streaming.engine.worker import main

if __name__ == "__main__":
    sys.exit(main())
