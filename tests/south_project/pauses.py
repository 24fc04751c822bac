"""A point that this process reaches, and does not pass before the test lets it."""

import os
import time


def pause(name):
    """Wait for the file `name.go`, if the environment names a directory for that."""
    directory = os.environ.get("SOUTH_PAUSES")
    if directory is None:
        return
    open(os.path.join(directory, name + ".reached"), "w").close()
    deadline = time.time() + 30
    while not os.path.exists(os.path.join(directory, name + ".go")):
        if time.time() > deadline:
            raise AssertionError("nobody ended the pause")
        time.sleep(0.01)
