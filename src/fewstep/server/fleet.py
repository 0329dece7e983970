"""How many replicas of a server there are, with what, and when there are more: all of it but Ray itself.

Ray is imported by `fewstep.server.ray` only; see docs/adr/0023-many-replicas-one-database.md.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ConfigDict, Field, ValidationError, model_validator

from fewstep.errors import UsageError
from fewstep.server.settings import Key, ServerSettings

KEYS: Final = "FEWSTEP_KEYS"
"""Environment variable: keys as ``NAME:SECRET``, separated by commas."""
KEYS_FILE: Final = "FEWSTEP_KEYS_FILE"
"""Environment variable: a file with keys, one a line; for secrets of container engines and of systemd."""
SOCKETS: Final = 128
"""Requests of one replica besides its orders: live sessions, watched jobs, questions."""
_OURS: Final = ("replicas", "gpus", "per_replica", "key_names", "json_logs")


class Fleet(ServerSettings):
    """Settings of every replica, and how many there are. All of it may be stored and shown: no secrets.

    ``host`` and ``port`` are of the replica, which listens nowhere: Ray's proxies do.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    replicas: str = Field("1", pattern=r"^[1-9][0-9]{0,3}(-[1-9][0-9]{0,3})?$")
    """A number, or the fewest and the most (``1-4``)."""
    gpus: float | None = Field(None, ge=0)
    """Of one replica; None is one where there are any and the engine may use it."""
    per_replica: float = Field(4.0, gt=0)
    """Orders, waiting or drawn, for which one replica is enough."""
    key_names: tuple[str, ...] = ()
    """Keys that the environment of every node must have."""
    json_logs: bool = False

    @model_validator(mode="before")
    @classmethod
    def _no_secrets(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("keys"):
            raise ValueError(
                f"Ray stores and shows the arguments of an application: set keys as {KEYS} in every node's "
                "environment"
            )
        return values

    @model_validator(mode="after")
    def _order(self) -> Fleet:
        fewest, most = self.bounds
        if fewest > most:
            raise ValueError(f"replicas is {self.replicas}: give the fewest first, as 1-4")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        """The fewest and the most replicas."""
        fewest, _, most = self.replicas.partition("-")
        return int(fewest), int(most or fewest)

    @property
    def ongoing(self) -> int:
        """HTTP requests that one replica takes at once: above what its own queue refuses."""
        return self.limits.queue + self.batch + SOCKETS

    @property
    def waiting(self) -> int:
        """HTTP requests that a proxy holds when all replicas have so many; more are turned away by Ray."""
        return self.ongoing

    @property
    def stopping(self) -> float:
        """Seconds that a replica has to end: requests first, then what is still in its queue."""
        return 2 * self.grace + 10.0

    def named(self, keys: Iterable[Key]) -> Fleet:
        """With the names of keys.

        Raises:
            UsageError: there is no key, and nobody has said that none is needed.
        """
        names = tuple(sorted(key.name for key in keys))
        if not names and not self.insecure:
            raise UsageError(
                f"no key is set, and Ray's proxies may be reached from other machines: set {KEYS} in the "
                "environment of every node, or give insecure=true"
            )
        return self.model_copy(update={"key_names": names})

    def server(self, environment: Mapping[str, str]) -> ServerSettings:
        """Settings of a replica, with the keys of its environment.

        Raises:
            UsageError: the environment has other keys than the deployment names.
        """
        found = keys(environment)
        if sorted(key.name for key in found) != sorted(self.key_names):
            raise UsageError(
                f"{KEYS} of this node has not the keys of the deployment "
                f"({', '.join(self.key_names) or 'none'}): set the same on every node, and start Ray anew"
            )
        values = self.model_dump(exclude={*_OURS, "keys"})
        return ServerSettings(**values, keys=found)

    def check_nodes(self, nodes: int) -> None:
        """Refuse several machines with a database that is a file of one.

        Raises:
            UsageError: says what to give.
        """
        if nodes > 1 and self.database_url.startswith("sqlite"):
            raise UsageError(
                f"the cluster has {nodes} nodes, and a SQLite file is for one machine: give database as "
                "postgresql+psycopg://user@host/name, and data as a folder that all nodes see"
            )

    def share(self, cpus: int, gpus: float, nodes: int = 1) -> tuple[int, float]:
        """Cores and GPUs of one replica.

        Args:
            cpus: cores of the smallest node.
            gpus: of the whole cluster.
            nodes: of the cluster.
        """
        together = math.ceil(self.bounds[1] / max(nodes, 1))
        cores = self.threads or max(1, cpus // together)
        if self.gpus is not None:
            return cores, self.gpus
        return cores, 1.0 if gpus >= 1 and self.engine in ("auto", "torch") else 0.0


def parse(values: Mapping[str, Any]) -> Fleet:
    """Read settings.

    Raises:
        UsageError: names the field.
    """
    try:
        return Fleet(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not isinstance(part, int)) or "options"
        raise UsageError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None


def keys(environment: Mapping[str, str], *options: str) -> tuple[Key, ...]:
    """Keys of an environment and of ``--key``. A value that is wrong is not repeated: it may be a secret.

    Raises:
        UsageError: one that is not of the form, or the file of `KEYS_FILE` cannot be read.
    """
    given = environment.get(KEYS, "").split(",")
    if path := environment.get(KEYS_FILE):
        try:
            given += Path(path).read_text(encoding="utf-8").replace(",", "\n").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8"
            raise UsageError(f"{KEYS_FILE}: {path} cannot be read ({reason})") from None
    texts = [*options, *(part for part in given if part.strip())]
    found = []
    for text in texts:
        name, separator, secret = text.strip().partition(":")
        try:
            if not separator:
                raise ValueError
            found.append(Key.model_validate({"name": name, "secret": secret}))
        except ValueError:
            raise UsageError(
                "a key has the form NAME:SECRET, the name of letters, digits and _.-, with at least 8 "
                "characters after the colon"
            ) from None
    return tuple(found)


def wanted(orders: Iterable[float], per_replica: float) -> int:
    """Replicas for so many orders in all replicas' queues; 1 at least."""
    return max(1, math.ceil(sum(orders) / per_replica))


def own_cluster() -> bool:
    """Whether there is no cluster to join, so that one of this machine's own is started."""
    return not os.environ.get("RAY_ADDRESS")


def without_statistics() -> None:
    """Before Ray is imported, which reads it then: it sends statistics of use unless it is told not to."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def prepare() -> None:
    """Before Ray is imported: no statistics, no signal handlers, and a token for a cluster of our own.

    Whoever reaches the ports of a Ray cluster may run code in it. Those of our own are the loopback's, and
    other users of this machine have no token.
    """
    without_statistics()
    # Ray's own would take SIGTERM for a crash, and end this process by an abort when all is done.
    os.environ["RAY_DISABLE_FAILURE_SIGNAL_HANDLER"] = "1"
    if own_cluster():
        # A machine that is busy imports Ray in more than the 5 s of the default.
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # what keeps it to the loopback, on Linux too
