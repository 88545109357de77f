"""What one visitor of the demo may ask for."""

from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse


MAX_BODY = 2 * 2**20  # bytes of a request
MAX_CHARACTERS = 20_000
MAX_HOLES = 5
MAX_NEW_TOKENS = 64
MAX_INFILL_SECONDS = 20.0


class BodyLimit:
    """Middleware that refuses requests whose body is too large, or does not say how large it is."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH"):
            length = dict(scope["headers"]).get(b"content-length", b"")
            if not length.isdigit():
                return await PlainTextResponse("The request does not say its length.", 411)(scope, receive, send)
            if int(length) > MAX_BODY:
                return await PlainTextResponse(f"The request has more than {MAX_BODY} bytes.", 413)(
                    scope, receive, send
                )
        await self.app(scope, receive, send)

    @classmethod
    def middleware(cls) -> list[Middleware]:
        return [Middleware(cls)]
