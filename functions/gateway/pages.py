"""The pages for people: the console, and the API's documentation.

Each may run its own script, and load nothing but what its policy names.
"""

import base64
import hashlib
import re
from pathlib import Path

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response

_CONSOLE = Path(__file__).with_name("console.html")
_SWAGGER = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5/"
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


def console() -> Response:
    """The console: one file that loads nothing and speaks only with this API."""
    return page(_CONSOLE.read_text(encoding="utf-8"), {"connect-src": "'self'", "img-src": "data:"})


def documentation(*, openapi_url: str, title: str) -> Response:
    """Swagger UI, whose code comes from a public network."""
    html = get_swagger_ui_html(
        openapi_url=openapi_url,
        title=title,
        swagger_js_url=f"{_SWAGGER}swagger-ui-bundle.js",
        swagger_css_url=f"{_SWAGGER}swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    sources = {
        "connect-src": "'self'",
        "img-src": "'self' data:",
        "script-src": _SWAGGER,
        "style-src": f"{_SWAGGER} 'unsafe-inline'",
    }
    return page(bytes(html.body).decode(), sources)


def page(html: str, sources: dict[str, str], *, status: int = 200) -> Response:
    """`html` under a policy of its own (https://www.w3.org/TR/CSP3/): what it holds inline runs, what is put in later does not."""
    policy = {"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'", **sources}
    for element, text in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        policy[f"{element}-src"] = f"{policy.get(f'{element}-src', '')} 'sha256-{digest}'".strip()
    header = "; ".join(f"{name} {value}" for name, value in policy.items())
    return Response(html, status, media_type="text/html", headers={"content-security-policy": header})
