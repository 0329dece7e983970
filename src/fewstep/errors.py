"""Every error that fewstep raises on purpose, with its exit code and its HTTP status.

A message is one line that names the input, the reason and the fix: ``steps is 0: at least one step is needed,
give --steps 1 or more``. A traceback is shown only with ``--debug``.

FewstepError
├── UsageError          a value that a person gave is out of range or contradicts another
│   └── RecipeError     the same, in a recipe file
├── NotFoundError       a name (model, recipe, file) that does not exist here
├── CheckpointError     a weight file or folder that is refused: broken, foreign or unsafe
├── DataError           training data or an input image that cannot be used
├── DependencyError     an optional package is missing; the message carries the install command
├── OutputError         a result cannot be written where it was asked for
├── RunError            a training run cannot go on (locked folder, non-finite losses, changed recipe)
├── EngineError         a model failed while drawing
├── QueueFull           a server has as many orders as it takes
├── NotReady            a server that is starting, stopping or out of memory
├── Expired             an order was not done by its deadline
├── RefusedError        a server does not let this caller in
│   ├── Unauthorized    no key, or a wrong one
│   ├── Forbidden       a key or an origin that may not do this
│   └── WrongHost       a request for another host's name
├── TooLarge            more bytes or pixels than are taken
├── ConflictError       an order that contradicts what is there: a key used again, a job in another state
└── Cancelled           the caller asked to stop
"""

from __future__ import annotations


class FewstepError(Exception):
    """Base of all errors raised on purpose. Never raised itself.

    Args:
        args: the message.
        field: the setting of a request that is to blame, by its name in `fewstep.engine.request.resolve`.
    """

    exit_code = 1
    http_status = 500
    field: str | None = None

    def __init__(self, *args: object, field: str | None = None) -> None:
        super().__init__(*args)
        if field is not None:
            self.field = field


class UsageError(FewstepError, ValueError):
    """A value out of range, or two values that contradict each other."""

    exit_code = 2
    http_status = 422


class RecipeError(UsageError):
    """A recipe file that does not follow the schema."""


class CheckpointError(FewstepError):
    """A weight file or model folder that is refused: broken, of a foreign kind, or unsafe."""

    exit_code = 3
    http_status = 422


class NotFoundError(FewstepError, LookupError):
    """A name that is not known here; the message lists what there is."""

    exit_code = 4
    http_status = 404


class DependencyError(FewstepError, ImportError):
    """An optional package is missing; the message carries the install command."""

    exit_code = 5
    http_status = 501


class DataError(FewstepError):
    """Training data or an input image that cannot be used."""

    exit_code = 6
    http_status = 422


class OutputError(FewstepError, OSError):
    """A result that cannot be written: folder not writable, disk full."""

    exit_code = 7
    http_status = 507


class RunError(FewstepError):
    """A training run that cannot start or go on."""

    exit_code = 8
    http_status = 409


class EngineError(FewstepError):
    """A model that failed while drawing, or drew something that is not finite."""

    exit_code = 9
    http_status = 500


class QueueFull(FewstepError):
    """A server has as many orders as it takes; `retry_after` says when to come again, in seconds."""

    exit_code = 10
    http_status = 429

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReady(FewstepError):
    """A server that is starting, stopping, or short of memory; the same order may succeed later."""

    exit_code = 11
    http_status = 503


class Stopping(NotReady):
    """What was taken is not done because the server is being stopped; the next one may do it again."""


class Expired(FewstepError):
    """An order that was not done by its deadline."""

    exit_code = 12
    http_status = 504


class RefusedError(FewstepError):
    """A server does not let this caller do this."""

    exit_code = 13
    http_status = 403


class Unauthorized(RefusedError):
    """No key was given, or a wrong one."""

    http_status = 401


class Forbidden(RefusedError):
    """A key, or the origin of a web page, that may not do this."""


class WrongHost(RefusedError):
    """A request that names another host: a web page that was made to point here."""

    http_status = 421


class TooLarge(FewstepError):
    """More bytes or pixels than are taken."""

    exit_code = 14
    http_status = 413


class ConflictError(FewstepError):
    """An order that contradicts what is there: an idempotency key used again, a job in another state."""

    exit_code = 15
    http_status = 409


class Cancelled(FewstepError):
    """The caller asked to stop; 130 is what shells report for an interrupt."""

    exit_code = 130
    http_status = 499
