"""What is to die or to run out of something, or to share with others, in a process of its own."""

import os
import threading
import traceback

from tqdm import tqdm

# Children are forked here, and killed: no thread beside, and no lock that they share with this process.
tqdm.monitor_interval = 0
tqdm.set_lock(threading.RLock())


def start_child(do):
    """The id of a process that does this."""
    pid = os.fork()
    if pid == 0:
        try:
            do()
        except BaseException:
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    return pid


def exit_code(pid):
    """0 if the process came to its end; minus the signal if it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(do):
    """The exit code of a process that does this."""
    return exit_code(start_child(do))
