"""What is to die or to run out of something, in a process of its own."""

import os
import traceback


def in_child(do):
    """The exit code of a process that does this, 0 if it comes to its end; minus the signal if it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            do()
        except BaseException:
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
