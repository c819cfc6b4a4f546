"""Monitoring tools, each set up as its documentation says, with a stand-in for what sends.

Only the worker under test imports these: they run in an environment of their own, one at a time.
A transaction is what a tool records of one run of a task, whatever the tool calls it.
"""

import re
import traceback

FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+, in (?P<function>\S+)')


def own(frames):
    """Of (file, function) pairs, the functions of the app: other frames are each tool's affair."""
    return [function for file, function in frames if file.endswith("tools_app.py")]


def own_in_text(lines):
    """The functions of the app in the last of some printed tracebacks."""
    starts = [i for i, line in enumerate(lines) if line.startswith("Traceback")]
    found = filter(None, map(FRAME.match, lines[starts[-1] :]))
    return own((frame["file"], frame["function"]) for frame in found)


def own_of(exc):
    """The functions of the app that the traceback of an exception goes through."""
    summary = traceback.extract_tb(exc.__traceback__)
    return own((frame.filename, frame.name) for frame in summary)


def short(exception):
    """The name of an exception class without its module."""
    return re.split(r"[.:]", exception)[-1]
