"""What a server counts, in Prometheus' format: queue, running orders, outcomes, times, batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of one server; a server has its own registry, so that two in one process do not add up."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._depth = Gauge("fewstep_queue_depth", "Orders that wait.", registry=self._registry)
        self._running = Gauge("fewstep_running", "Orders that are being drawn.", registry=self._registry)
        self._orders = Counter(
            "fewstep_orders", "Orders by outcome.", ["client", "outcome"], registry=self._registry
        )
        self._rejected = Counter(
            "fewstep_rejected", "Orders that were not taken.", ["reason"], registry=self._registry
        )
        self._images = Counter("fewstep_images", "Pictures that were drawn.", registry=self._registry)
        self._unsaved = Counter(
            "fewstep_unsaved_images", "Pictures that could not be kept.", registry=self._registry
        )
        self._phase = Histogram(
            "fewstep_phase_seconds", "Seconds per phase of an order.", ["phase"], buckets=_SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._batch = Histogram(
            "fewstep_batch_orders", "Orders drawn together.", buckets=(1, 2, 4, 8, 16),
            registry=self._registry,
        )  # fmt: skip

    def watch(self, depth: Callable[[], int], running: Callable[[], int]) -> None:
        """Ask these for the two gauges when they are read."""
        self._depth.set_function(depth)
        self._running.set_function(running)

    def finished(self, client: str, outcome: str, images: int, timings: Mapping[str, float]) -> None:
        """An order has ended: outcome is a final state of a job."""
        self._orders.labels(client, outcome).inc()
        self._images.inc(images)
        for phase, seconds in timings.items():
            self._phase.labels(phase).observe(seconds)

    def rejected(self, reason: str) -> None:
        """An order was not taken: ``full``, ``draining``, ``invalid``."""
        self._rejected.labels(reason).inc()

    def unsaved(self, images: int) -> None:
        """So many pictures were drawn and could not be kept."""
        self._unsaved.inc(images)

    def batch(self, orders: int) -> None:
        """So many orders are drawn together."""
        self._batch.observe(orders)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
