"""Finds a function by name, lazily: one image, and FUNCTION_TARGET picks the function.

FUNCTION_TARGET=writer functions-framework
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    module = f"functions.{name}.main"
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise AttributeError(f"there is no function {name}: functions/{name}/main.py is missing") from None
