"""Packages that only some features need."""

import importlib
from types import ModuleType


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """
    Imports an optional package where it is needed, so that the rest works without it.

    Args:
        module (`str`): what to import; of a dotted name the top-level package is returned, as by `import`.
        extra (`str`): the extra of setup.cfg that installs it.
        purpose (`str`): what needs it, as the subject of a sentence.

    Returns:
        `ModuleType`: the top-level package.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    package = module.split(".")[0]
    try:
        imported = importlib.import_module(package)
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package {package}: pip install 'modeling-lpn[{extra}]'") from error
    return imported


__all__ = ["require"]
