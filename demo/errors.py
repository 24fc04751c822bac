"""The demo's own errors: each message is one sentence for the person at the keyboard."""


class DemoError(Exception):
    """The demo cannot go on, and the message says why."""
