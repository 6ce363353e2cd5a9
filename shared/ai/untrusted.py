"""Text from outside stands between `<untrusted>` and `</untrusted>`, and no such text may open or close such a part."""

import re
from collections.abc import Mapping
from typing import Any

_MARK = re.compile(r"<(?=\s*/?\s*untrusted)", re.IGNORECASE)


def disarmed(value: Any) -> Any:
    """`value` (JSON) with every mark that would open or close an untrusted part made harmless."""
    if isinstance(value, str):
        return _MARK.sub("&lt;", value)
    if isinstance(value, Mapping):
        return {_MARK.sub("&lt;", str(key)): disarmed(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [disarmed(one) for one in value]
    return value
