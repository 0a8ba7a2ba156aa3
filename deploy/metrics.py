"""What the server tells Prometheus, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

BUCKETS = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)  # seconds


class Metrics:
    """Counters of requests and texts, the latency, how many texts wait; memory and processor time of the process."""

    def __init__(self, labels: list[str] | None, waiting):
        """`waiting`: a function that returns how many texts wait."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        self.requests = Counter("lowbit_requests", "Requests to /predict that were answered", ["status"],
                                registry=registry)
        self.texts = Counter("lowbit_texts", "Texts of requests that were labelled", registry=registry)
        self.errors = Counter("lowbit_text_errors", "Texts that were answered with an error", registry=registry)
        self.empty = Counter("lowbit_empty_texts", "Texts of which cleaning left nothing", registry=registry)
        self.labels = Counter("lowbit_labels", "Texts by the label they were given", ["label"], registry=registry)
        self.hung_up = Counter("lowbit_hang_ups", "Requests whose client left before the answer", registry=registry)
        self.seconds = Histogram("lowbit_request_seconds", "From the head of a request that was labelled to its answer",
                                 buckets=BUCKETS, registry=registry)
        Gauge("lowbit_waiting_texts", "Texts that wait for the model", registry=registry).set_function(waiting)
        self.of_label = {label: self.labels.labels(label) for label in labels or ()}  # each counted from 0

    def expose(self) -> bytes:
        return generate_latest(self.registry)
