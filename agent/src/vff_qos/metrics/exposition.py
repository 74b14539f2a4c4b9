"""A snapshot as Prometheus reads it: the text format, version 0.0.4, by prometheus_client.

See https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .catalogue import COUNTER, NODE, USER, MetricOf, Point
from .snapshot import ShownUser, Snapshot


class _Single(Collector):
    """A collector of one metric: so what all users have is never in memory all at once."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        yield self._metric


def exposition(snapshot: Snapshot, most_users: int) -> Iterator[bytes]:
    """The text, piece by piece, a metric each, of the node and of so many users."""
    for metric in NODE:
        yield from _text(metric, metric.labels, metric.read(snapshot))
    users = snapshot.chosen(most_users)
    for metric in USER:
        yield from _text(metric, ("user", *metric.labels), _of_users(metric, users))


def _of_users(metric: MetricOf, users: list[ShownUser]) -> Iterator[Point]:
    for user in users:
        for labels, value in metric.read(user):
            yield (user.name, *labels), value


def _text(metric: MetricOf, labels: tuple[str, ...], points: Iterable[Point]) -> Iterator[bytes]:
    family: CounterMetricFamily | GaugeMetricFamily
    make = CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
    family = make(metric.full_name, metric.help, labels=labels)
    for values, value in points:
        family.add_metric(values, value)
    # What is not known at the moment is left out whole.
    if family.samples:
        yield generate_latest(_Single(family))
