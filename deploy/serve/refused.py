"""What a client is told when its request is not answered."""

from __future__ import annotations


class RefusedError(Exception):
    """A request that is not answered, with the HTTP status and the sentence that say why.

    Attributes:
        status: 4xx for a mistake of the client's, 503 where it may ask again later.
        closes: whether the connection is of no use after it.
    """

    def __init__(self, status: int, why: str, *, closes: bool = False) -> None:
        super().__init__(why)
        self.status = status
        self.closes = closes
