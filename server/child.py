"""Become a process that dies with its parent: `python server/child.py PARENT-PID COMMAND…`.

Runs before the command's own interpreter instead of between fork and exec, where a process with threads may run hardly
anything safely. The death signal outlives `exec`. Uses the standard library only, and starts in some 10 ms.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(os.EX_UNAVAILABLE)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
