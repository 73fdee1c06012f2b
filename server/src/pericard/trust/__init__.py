"""Does this site accept it: publishers, grant dates, floor, licence time, required runtime.

Rules of this room: a file that comes here is genuine already (``sealed`` verified it); here the site's own policy
speaks. What must be remembered between starts is one small state file, written atomically, whose digest stands in
every ``start`` record of the audit log. Time is licence time: it never runs behind what was recorded before.
"""

from pericard.trust.policy import Licence, Policy
from pericard.trust.state import TrustState

__all__ = ["Licence", "Policy", "TrustState"]
