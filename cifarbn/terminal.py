"""The terminal of a command, which its user may close."""

import errno
import os
import termios


def leave_closed_terminal() -> None:
    """Discard the output from now on where it goes to a terminal that was closed: writing to it raises an error."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # closed; another number means that it is not a terminal
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)
