"""What can be told of a query without a Prometheus."""

import re

_SERIES = re.compile(r"\b[a-z_]+:[a-z_]+(\{[^}]*\})?")


def ambiguous(query: str) -> list[str]:
    """The series of a query that do not say of which resource they are.

    Monitoring refuses a query for a metric that several kinds of resource may have, as all have that are made from the log
    (https://cloud.google.com/monitoring/promql/promql-mapping).
    """
    series = list(_SERIES.finditer(query))
    assert series, f"no series in {query}"
    return [one[0] for one in series if 'monitored_resource="' not in (one[1] or "")]
