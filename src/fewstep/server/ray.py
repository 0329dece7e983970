"""The same application as a Ray Serve deployment: replicas per device, more of them when orders pile up.

    fewstep serve --ray --replicas 1-4
    serve run fewstep.server.ray:app data=/srv/fewstep replicas=2

What replicas share is decided in docs/adr/0023-many-replicas-one-database.md, how many there are and with
what in `fewstep.server.fleet`. A replica takes requests once it has drawn a picture; one whose worker is
broken is replaced; one that is to go ends as a server does on SIGTERM.

This is the only module that imports Ray, which takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from fewstep.errors import DependencyError, NotReady
from fewstep.server import fleet as fleets
from fewstep.server.fleet import Fleet

fleets.without_statistics()

try:
    import ray
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, BackpressureConfig, HTTPOptions
except ImportError as missing:
    raise DependencyError(
        f'serve --ray: {missing.name} is not installed; install it with: pip install "fewstep[ray]"'
    ) from None

_log = logging.getLogger("fewstep.server")

NAME: Final = "fewstep"
"""Of the application and of its deployment."""
_OPENING = 0.05
"""Seconds between looks whether a replica is ready."""
_ATTEMPTS: Final = 4
"""To start a cluster: Ray gives its own processes 30 s, which a busy machine may need for reading them."""
_ORDERS: Final = "orders"


def app(args: Mapping[str, Any]) -> Any:
    """The application of ``serve run fewstep.server.ray:app``, with fields of `Fleet` as arguments.

    Raises:
        UsageError: an argument that cannot be, or no key.
    """
    settings = fleets.parse(args)
    return application(settings.named(fleets.keys(os.environ)))


def application(settings: Fleet) -> Any:
    """The application, to be run on the cluster that this process is connected to.

    Raises:
        UsageError: several nodes with SQLite.
    """
    nodes, cpus, gpus = _cluster()
    settings.check_nodes(nodes)
    cores, cards = settings.share(cpus, gpus, nodes)
    folders = tuple(folder.absolute() for folder in settings.models_dirs)
    loras = tuple(folder.absolute() for folder in settings.loras_dirs)
    settings = settings.model_copy(
        update={
            "threads": cores,
            "data": settings.data.absolute(),
            "models_dirs": folders,
            "loras_dirs": loras,
        }
    )
    fewest, most = settings.bounds
    how_many: dict[str, Any] = {"num_replicas": fewest}
    if most > fewest:
        policy = AutoscalingPolicy(policy_function=by_orders)
        how_many = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=fewest, max_replicas=most, initial_replicas=fewest, policy=policy,
                target_ongoing_requests=settings.per_replica, upscale_delay_s=5.0, downscale_delay_s=300.0,
            )
        }  # fmt: skip
    deployment = serve.deployment(
        name=NAME,
        ray_actor_options={"num_cpus": cores, "num_gpus": cards},
        max_ongoing_requests=settings.ongoing,
        max_queued_requests=settings.waiting,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1.0),
        graceful_shutdown_timeout_s=settings.stopping,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        health_check_timeout_s=30.0,
        **how_many,
    )(serve.ingress(_builder(settings))(Replica))
    return deployment.bind()


def run(settings: Fleet, *, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C: on the cluster of ``RAY_ADDRESS``, or on one of this machine's own.

    Args:
        settings: of the replicas, with the names of their keys. `fleet.prepare` was called before this
            module was imported.
        host: that Ray's proxies listen on.
        port: likewise.
    """
    stop = threading.Event()
    own = fleets.own_cluster()
    _connect(settings, own=own)
    # After Ray has set its own, which ends this process with another status than 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        serve.start(
            proxy_location="HeadOnly" if own else "EveryNode",
            http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=30),
        )
        serve.run(application(settings), name=NAME, route_prefix="/", blocking=False)
        _log.info("ready: %s replicas behind http://%s:%d", settings.replicas, host, port)
        stop.wait()
    finally:
        # Replicas end one by one as servers do. A cluster that is not ours keeps running.
        with contextlib.suppress(Exception):
            serve.delete(NAME)
        if own:
            serve.shutdown()
        ray.shutdown()


class Replica:
    """What Ray asks of one replica; its ASGI application comes from `_builder`."""

    app: Any

    async def check_health(self) -> None:
        """Raises when the replica is to be replaced: its worker has died too often."""
        services = self.app.state.services
        if services.failure is not None or not services.generator.queue.healthy:
            raise RuntimeError(services.failure or "the worker that draws has died")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Orders that wait or are drawn."""
        queue = self.app.state.services.generator.queue
        return {_ORDERS: float(queue.depth + queue.running)}


def by_orders(context: Any) -> tuple[int, dict[str, Any]]:
    """Policy of autoscaling: as many replicas as the orders in all queues need.

    Delays and bounds are applied by Ray.
    """
    reported: Mapping[Any, float] = (context.aggregated_metrics or {}).get(_ORDERS, {})
    if not reported:
        return context.target_num_replicas, {}
    return fleets.wanted(reported.values(), float(context.config.target_ongoing_requests)), {}


def _builder(settings: Fleet) -> Any:
    """A function without arguments that makes the application, in the replica's process."""

    def build() -> Any:
        from fewstep.server import logs
        from fewstep.server.app import create_app

        logs.configure(json=settings.json_logs)
        made = create_app(settings.server(os.environ))
        made.router.lifespan_context = functools.partial(_ready_first, made.router.lifespan_context)
        return made

    return build


@contextlib.asynccontextmanager
async def _ready_first(lifespan: Any, made: Any) -> AsyncIterator[None]:
    """A lifespan that begins when the first picture was drawn, so that Ray sends no request before."""
    services = made.state.services
    async with lifespan(made):
        while not services.started:
            if services.failure is not None:
                raise NotReady(f"the replica cannot work: {services.failure}")
            await asyncio.sleep(_OPENING)
        yield


def _connect(settings: Fleet, *, own: bool) -> None:
    options: dict[str, Any] = {"namespace": NAME, "log_to_driver": own}
    if own:
        cpus = max(os.cpu_count() or 1, settings.bounds[1] * (settings.threads or 1))
        options |= {"address": "local", "num_cpus": cpus, "include_dashboard": False}
    for attempt in range(_ATTEMPTS):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray's own, of no class
            ray.shutdown()
            if attempt + 1 == _ATTEMPTS:
                reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                raise NotReady(f"Ray does not start, or RAY_ADDRESS does not answer: {reason}") from error


def _cluster() -> tuple[int, int, float]:
    """Nodes, the cores of the smallest, and all GPUs; of this machine where no cluster is connected yet."""
    if not ray.is_initialized():
        return 1, os.cpu_count() or 1, 0.0
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    return len(nodes), min(cpus, default=1), sum(float(node.get("GPU", 0)) for node in nodes)
