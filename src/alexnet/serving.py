"""The web page of a trained network, and its JSON endpoint (the page draws as in Figure 4).

gradio carries the page; pictures do not go through it, since it keeps what is uploaded in files.
They are the bodies of requests to /api, which `service.py` answers from memory. A gate lets nothing
else through: no upload, no file of this machine, no request to anywhere. Everything that the page
needs comes from here, so that it works offline. Not here: limits and answers (`service.py`).
"""

import asyncio
import base64
import contextlib
import html
import importlib
import json
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from importlib.resources import files
from typing import Any

from alexnet.decoding import Refused
from alexnet.errors import UserError
from alexnet.service import NEAREST, TOP, Sent, Service, jpeg

EXAMPLES = 8
DISCONNECTED = "the client has gone"

# What may be asked for. Names of gradio's files have no dots but the last, and no percent signs.
ALLOWED = {
    "GET": re.compile(
        r"/|/config|/theme\.css|/(?:assets|static)/(?:[\w@-]+/)*[\w@-]+(?:\.[\w-]+)*"
        r"|/gradio_api/(?:startup-events|heartbeat/\w+)|/api/openapi\.json|/api/examples/\d+\.jpg"
    ),
    "POST": re.compile(r"/api/(?:predict|conv1|occlusion)"),
}
HEADERS = {
    # gradio writes scripts into its page and makes functions of text; nothing comes from elsewhere.
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


def make_app(service: Service, examples: Sequence[bytes], address: str) -> App:
    """The page, the endpoint and the gate before them. Raises UserError without gradio."""
    gradio = _gradio()
    app = importlib.import_module("fastapi").FastAPI(
        title="alexnet",
        description="What a trained AlexNet sees in a picture.",
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
    )
    _add_endpoint(app, service, examples)
    page = _page(gradio, service, len(examples), address)
    app = gradio.mount_gradio_app(
        app,
        page,
        path="/",
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        max_file_size=1,
        css=_text("serve.css"),
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )
    return gate(app)


def _gradio() -> Any:
    """The module, told to keep to itself. Raises UserError where it is not installed."""
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
    # gradio makes the folder; the gate lets nothing be put there.
    os.environ.setdefault("GRADIO_TEMP_DIR", os.path.join(tempfile.gettempdir(), "alexnet-serve"))
    try:
        return importlib.import_module("gradio")
    except ImportError:
        raise UserError("the page needs gradio: pip install 'alexnet[serve]'") from None


def _page(gradio: Any, service: Service, examples: int, address: str) -> Any:
    card, limits = service.model.card, service.limits
    indexed = len(service.searcher.index) if service.searcher is not None else 0
    about = (
        f"The network <em>{html.escape(card.network)}</em>, trained on "
        f"{html.escape(card.dataset)}, knows {card.num_classes:,} classes "
        "and takes every picture for one of them."
    )
    said = {
        "network": "AlexNet",
        "about": about,
        "limits": f"At most {limits.max_bytes / 2**20:g} MB and "
        f"{limits.max_pixels / 1e6:g} million pixels.",
        "address": html.escape(address),
    }
    markup = re.sub(
        r"@(\w*)@", lambda found: said[found[1]] if found[1] else "@", _text("serve.html")
    )
    settings = {"max_bytes": limits.max_bytes, "indexed": indexed, "examples": examples}
    with gradio.Blocks(title="AlexNet", analytics_enabled=False, fill_width=True) as page:
        gradio.HTML(
            html_template=markup,
            js_on_load=_text("serve.js"),
            settings=json.dumps(settings),
            apply_default_css=False,
        )
    return page


def _text(name: str) -> str:
    return files("alexnet").joinpath(name).read_text(encoding="utf-8")


# The endpoint


def _add_endpoint(app: Any, service: Service, examples: Sequence[bytes]) -> None:
    fastapi, responses = (
        importlib.import_module(name) for name in ("fastapi", "fastapi.responses")
    )

    async def predict(request: Any, top: int = TOP, nearest: int = NEAREST) -> Any:
        """Send a picture's bytes as the body: JPEG, PNG, WebP, GIF or BMP.

        {network, format, width, height, top5: [{class, id, probability}],
        nearest: [{name, class, distance, picture}]}
        """

        def work(sent: Sent) -> dict[str, Any]:
            near = service.nearest(sent, nearest) if nearest > 0 else []
            return {
                "network": service.model.network.name,
                "format": sent.format,
                "width": sent.width,
                "height": sent.height,
                "top5" if top == TOP else f"top{top}": service.predict(sent, top),
                "nearest": [{**one, "picture": _data_uri("jpeg", one["picture"])} for one in near],
            }

        if not 1 <= top <= 100 or not 0 <= nearest <= 100:
            return _refusal(responses, Refused(400, "top is 1 to 100, and nearest 0 to 100"))
        return await _answered(responses, service, request, work)

    async def conv1(request: Any) -> Any:
        """The responses of the first layer: {picture}."""

        def work(sent: Sent) -> dict[str, Any]:
            return {"picture": _data_uri("png", service.conv1(sent))}

        return await _answered(responses, service, request, work)

    async def occlusion(request: Any) -> Any:
        """JSON lines: {done, total}, ..., {class, probability, lowest, picture} or {error}."""
        try:
            with service.admit(_client(request), _length(request)):
                sent = await _received(service, request)
        except Refused as refused:
            return _refusal(responses, refused)
        lines = _occlusion_lines(service, sent, request)
        return responses.StreamingResponse(lines, media_type="application/x-ndjson")

    async def example(number: int) -> Any:
        if not 0 <= number < len(examples):
            return _refusal(responses, Refused(404, "there is no such example"))
        return responses.Response(examples[number], media_type="image/jpeg")

    body = {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
    for function in (predict, conv1, occlusion):
        function.__annotations__["request"] = fastapi.Request
        name = function.__name__
        app.add_api_route(
            f"/api/{name}", function, methods=["POST"], openapi_extra={"requestBody": body}
        )
    app.add_api_route("/api/examples/{number}.jpg", example, methods=["GET"])


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _client(request: Any) -> str:
    return request.client.host if request.client else ""


def _length(request: Any) -> int | None:
    text = request.headers.get("content-length", "")
    return int(text) if text.isdecimal() else None


async def _received(service: Service, request: Any) -> Sent:
    """Read the body, no more than the limit of bytes and of time, and decode it."""
    data = bytearray()

    async def read() -> None:
        async for chunk in request.stream():
            data.extend(chunk)
            if len(data) > service.limits.max_bytes:
                raise service.too_large()

    try:
        await asyncio.wait_for(read(), service.limits.seconds)
    except TimeoutError:
        raise Refused(408, "the picture did not come in time") from None
    return await asyncio.to_thread(service.receive, bytes(data))


async def _answered(
    responses: Any, service: Service, request: Any, work: Callable[[Sent], dict[str, Any]]
) -> Any:
    try:
        with service.admit(_client(request), _length(request)):
            sent = await _received(service, request)
            return responses.JSONResponse(await asyncio.to_thread(work, sent))
    except Refused as refused:
        return _refusal(responses, refused)


def _refusal(responses: Any, refused: Refused) -> Any:
    return responses.JSONResponse({"error": str(refused)}, status_code=refused.status)


async def _occlusion_lines(service: Service, sent: Sent, request: Any) -> AsyncIterator[str]:
    """What a thread reports, as it comes; the thread ends when nobody listens any more."""
    loop, lines, gone = asyncio.get_running_loop(), asyncio.Queue[Any](), False

    def progress(done: int, total: int) -> None:
        if gone:
            raise Refused(499, DISCONNECTED)
        loop.call_soon_threadsafe(lines.put_nowait, {"done": done, "total": total})

    def work() -> None:
        try:
            found = service.occlusion(sent, progress)
            found["picture"] = _data_uri("jpeg", found["picture"])
        except Refused as refused:
            found = {"error": str(refused)}
        loop.call_soon_threadsafe(lines.put_nowait, found)

    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        while True:
            line = await lines.get()
            yield json.dumps(line) + "\n"
            if "total" not in line:
                return
    finally:
        gone = True
        with contextlib.suppress(asyncio.CancelledError):
            await working


# The gate


def gate(app: App) -> App:
    """Let through what ALLOWED names, from pages of this server only, and mark every answer."""

    async def gated(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no web sockets, and nothing of gradio's to start
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(k, v) for k, v in message.get("headers", []) if k != b"server"]
                headers += [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                if scope["path"].startswith("/api/"):
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        status = _unwanted(scope)
        if not status:
            await app(scope, receive, marked)
            return
        said = {404: "there is no such page here", 403: "that comes from another page"}[status]
        head = [(b"content-type", b"application/json")]
        await marked({"type": "http.response.start", "status": status, "headers": head})
        body = json.dumps({"error": said}).encode()
        await marked({"type": "http.response.body", "body": body})

    return gated


def _unwanted(scope: MutableMapping[str, Any]) -> int:
    """The status of the refusal, or 0."""
    raw = scope.get("raw_path") or scope["path"].encode()
    allowed = ALLOWED.get(scope["method"])
    if b"%" in raw or allowed is None or not allowed.fullmatch(scope["path"]):
        return 404
    headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
    origin = headers.get(b"origin")
    if origin is not None and origin.partition("://")[2] != headers.get(b"host"):
        return 403
    return 0


# Running it


def examples_of(service: Service) -> list[bytes]:
    """A picture of each of the first classes of the index, as JPEG."""
    if service.searcher is None or service.shelf is None:
        return []
    index = service.searcher.index
    chosen = [int((index.labels == label).argmax()) for label in sorted(set(index.labels.tolist()))]
    return [jpeg(service.shelf.picture(row), enlarge_to=256) for row in chosen[:EXAMPLES]]


def run(app: App, host: str, port: int) -> None:
    """Serve until Ctrl-C."""
    uvicorn = importlib.import_module("uvicorn")
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",  # what gradio starts there serves its queue, which the gate keeps closed
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 << 10,
    )
