"""What a failed download says of a proxy that the environment names."""

import os
import re

VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "PIP_PROXY")
SECRET = re.compile(r"//[^/@\s]*@")


def without_secrets(text: str) -> str:
    """The text without the names and passwords in its addresses."""
    return SECRET.sub("//...@", text)


def proxy_words() -> str:
    """A clause that names the proxies of the environment and what to do about them; "" where there is none."""
    found = [f"{name}={without_secrets(value)!r}" for name in VARIABLES if (value := os.environ.get(name))]
    if not found:
        return ""
    return f"the environment sends it through the proxy of {' and '.join(found)}: correct or unset that; else "
