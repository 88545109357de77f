"""What a source offers to a code corpus, before anything is known of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass
class Candidate:
    """A file that may enter the corpus; `read` gives its bytes, or its text where the source holds text."""

    path: str
    read: Callable[[], bytes | str | None]
    size: int | None = None  # in bytes, where it is known without reading
    licence: str = ""  # where the source states one for each file


@dataclass
class Source:
    """Files of one origin. `licence` is that of all files, empty where unknown or where each file states its own."""

    label: str
    detail: str
    licence: str
    candidates: Callable[[], Iterable[Candidate]]
    is_code: bool = True
    licence_by_file: bool = False
    total: int | None = None


class Drop(Exception):
    """A file stays out of the corpus.

    Args:
        reason: One of the words that the table and the manifest count by.
        detail: The kept file that it repeats, or its licence, or how a benchmark was seen in it.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail
