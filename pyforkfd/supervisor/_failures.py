"""The cause of a refusal, of an exception that was expected and of one that was not."""

from __future__ import annotations

import logging
import traceback

log = logging.getLogger("pyforkfd.supervisor")


def report(what: str, error: Exception, expected: tuple[type[Exception], ...]) -> str:
    """Log a request that is refused by an exception, and return the cause for the reply.

    Whatever the exception is, the workers that serve go on: a bug in the part that refuses, or
    a lack of memory there, is no fault of theirs.  One that is not expected is logged with its
    traceback.

    Args:
        what: the request, "reload".
        error: the exception.
        expected: classes of which the message is for people.
    """
    if isinstance(error, expected) and str(error):
        why = str(error)
        log.error("%s: %s", what, why)
        return why
    why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    trace = "".join(traceback.format_exception(error))
    log.error("%s: unexpected: %s: nothing was changed\n%s", what, why, trace)
    return why
