"""Does this site accept it: publishers, grant dates, floor, licence time, required runtime.

Rules of this room: a file that comes here is genuine already (``sealed`` verified it); here the site's own policy
speaks. What the site chose is one file (``store``), what it must remember between starts another (``state``), each
written whole or not at all. Time is licence time: it never runs behind what was recorded before. This room knows no
audit log: it proposes what is to be remembered, and writes it once the caller recorded it.
"""

from pericard.trust.policy import Licence, Policy
from pericard.trust.state import Remembered, TrustState
from pericard.trust.store import Pin, Pins, TrustStore

__all__ = ["Licence", "Pin", "Pins", "Policy", "Remembered", "TrustState", "TrustStore"]
