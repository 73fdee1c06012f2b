"""Load on a server, and what came of it: a generator that hides neither the server's stalls nor its own.

Rules of this room: one process, one thread, one event loop. In the open loop a latency counts from the moment the
request was due, whether or not it could be sent then (no coordinated omission). Every sample is kept, so percentiles
are exact; everything is bounded: connections, requests, time, memory. It carries HTTP/1.1 itself (``carrier``), since
the library that the client uses costs the generator 20 to 60 times as much for a request; what is sent is made by
``wire``, as the client's own requests are.
"""

from pericard_client.bench.carrier import MOST_CONNECTIONS, Carrier
from pericard_client.bench.load import Load, Plan
from pericard_client.bench.payload import Judge, Payload, payloads
from pericard_client.bench.signal import LARGEST_POOL, cut, synthetic
from pericard_client.bench.tally import LATE, MOST_REQUESTS, PERCENTILES, Measurement, Tally, percentile

__all__ = [
    "LARGEST_POOL",
    "LATE",
    "MOST_CONNECTIONS",
    "MOST_REQUESTS",
    "PERCENTILES",
    "Carrier",
    "Judge",
    "Load",
    "Measurement",
    "Payload",
    "Plan",
    "Tally",
    "cut",
    "payloads",
    "percentile",
    "synthetic",
]
