"""What strangers send is answered or refused in one line; the rest of the machine stays closed."""

import asyncio
import io
import json
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

import alexnet as package
from alexnet import seeing
from alexnet.decoding import Decoders, Refused
from alexnet.errors import UserError
from alexnet.indexing import make_index
from alexnet.model import build
from alexnet.searching import Searcher
from alexnet.service import Limits, Rates, Service, check_port
from alexnet.weights import save_model
from fabricate import alexnet, pictures, refusal
from test_extract import card_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("service")
    model = build("small", 3, torch.Generator().manual_seed(0))
    save_model(folder / "run" / "model.safetensors", model, card_of())
    pictures(folder / "pictures", per_class=3)
    network = package.load(folder / "run")
    file = folder / "run" / "model.safetensors"
    make_index(folder / "index", network, file, str(folder / "pictures"))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    searcher = Searcher(package.index.open_index(folder / "index"))
    limits = Limits(max_bytes=1 << 20, max_pixels=1_000_000, per_minute=1e6, burst=10**6)
    with Service(package.load(folder / "run"), limits, searcher, decoders=1) as service:
        yield service


def encoded(size: tuple[int, int] = (90, 70), form: str = "PNG") -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A few bytes that claim to be so large."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"


def refused(service: Service, data: bytes) -> Refused:
    with pytest.raises(Refused) as caught:
        service.receive(data)
    assert "\n" not in str(caught.value)
    return caught.value


def test_an_answer_is_that_of_the_network_itself(folder: Path, service: Service) -> None:
    sent = service.receive(encoded())
    assert (sent.format, sent.width, sent.height) == ("PNG", 90, 70)
    expected = package.load(folder / "run").predict(encoded())
    found = service.predict(sent)
    assert [one["class"] for one in found] == [guess.name for guess in expected.top]
    np.testing.assert_allclose(
        [one["probability"] for one in found], [g.probability for g in expected.top], rtol=1e-5
    )


def test_a_picture_of_the_index_is_nearest_to_itself(folder: Path, service: Service) -> None:
    path = sorted((folder / "pictures" / "red").iterdir())[0]
    near = service.nearest(service.receive(path.read_bytes()), 2)
    assert near[0]["name"] == path.name  # not where it lies on this machine
    assert near[0]["class"] == "red"
    assert Image.open(io.BytesIO(near[0]["picture"])).size == (160, 160)


@pytest.mark.parametrize(
    ("data", "status", "said"),
    [
        (b"", 400, "no picture came"),
        (b"This is a text, whatever its name says.", 415, "not a picture of a kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "not a picture of a kind"),
        (encoded(form="TIFF"), 415, "not a picture of a kind"),
        (encoded()[:-3000], 422, "cannot be read"),
        (bytes(1 << 20) + b"1", 413, "more than 1 MB"),
        (huge_png(10_000, 10_000), 413, "10,000 x 10,000 pixels; the limit here is 1 million"),
        (huge_png(2**31 - 1, 2**31 - 1), 413, "pixels"),
    ],
    ids=["nothing", "text", "eps", "tiff", "cut", "bytes", "pixels", "bomb"],
)
def test_what_is_no_picture_or_too_large_is_refused(
    service: Service, data: bytes, status: int, said: str
) -> None:
    answer = refused(service, data)
    assert (answer.status, said in str(answer)) == (status, True), answer


def test_a_decoder_that_dies_takes_nothing_with_it(service: Service) -> None:
    before = service._decoders._pool
    service.receive(encoded())
    for process in list((before._processes or {}).values()):
        process.kill()
        process.join()
    assert service.receive(encoded()).width == 90


def test_a_picture_that_takes_too_long_is_given_up() -> None:
    decoders = Decoders(1)
    try:
        with pytest.raises(Refused) as caught:
            decoders.run((encoded(), 64, 10**6), 1e-4)
        assert caught.value.status == 504
    finally:
        decoders.close()


def test_answers_that_come_too_late_are_refusals(service: Service) -> None:
    sent = service.receive(encoded())
    late = type(sent)(sent.pixels, sent.format, sent.width, sent.height, service.clock() - 1)
    with pytest.raises(Refused, match="too long"):
        service.predict(late)


def test_a_client_that_asks_too_often_waits_and_others_do_not() -> None:
    now = 0.0
    rates = Rates(60.0, 3, lambda: now)
    for _ in range(3):
        rates.take("one")
    with pytest.raises(Refused, match="try again in 1 s") as caught:
        rates.take("one")
    assert caught.value.status == 429
    rates.take("another")
    now = 1.0
    rates.take("one")
    with pytest.raises(Refused):
        rates.take("one")


def test_as_many_wait_as_there_is_room_for(folder: Path) -> None:
    model = package.load(folder / "run")
    limits = Limits(waiting=2, max_bytes=1000, bytes_under_way=1500)
    with Service(model, limits, decoders=1) as service:
        with service.admit("a", 700), service.admit("b", 700):
            with pytest.raises(Refused) as caught, service.admit("c", 1):
                pass
            assert caught.value.status == 503
        with service.admit("a", 900), pytest.raises(Refused), service.admit("b", 900):
            pass
        with service.admit("a", None):
            pass
        with pytest.raises(Refused) as caught:
            service.admit("a", 1001)
        assert caught.value.status == 413


def test_occlusion_covers_each_place_once(folder: Path) -> None:
    model = package.load(folder / "run")
    pixels = model.prepared(encoded())
    seen: list[tuple[int, int]] = []
    found = seeing.occlusion(model, pixels, 1, places=3, progress=lambda *n: seen.append(n))
    assert seen[-1] == (9, 9)
    # The oracle: squares cut by hand out of the crop.
    crop = torch.from_numpy(seeing.seen_part(model, pixels).astype(np.float32))
    preprocessing = model.card.preprocessing
    border, size = preprocessing.border_px, preprocessing.crop_px
    inner = slice(border, border + size)
    centred = (crop - preprocessing.mean_image[inner, inner]) / torch.tensor([1.0, 2.0, 3.0])
    side = round(seeing.SQUARE * size)
    for row, top in enumerate((-side / 2, (size - side) / 2, size - side / 2)):
        for column, left in enumerate((-side / 2, (size - side) / 2, size - side / 2)):
            covered = centred.clone()
            for y in range(size):
                for x in range(size):
                    if (
                        round(top) <= y < round(top) + side
                        and round(left) <= x < round(left) + side
                    ):
                        covered[y, x] = 0
            with torch.no_grad():
                expected = model(covered.permute(2, 0, 1)[None]).softmax(1)[0, 1]
            assert found[row, column] == pytest.approx(float(expected), abs=1e-5)


def test_maps_are_pictures(service: Service) -> None:
    sent = service.receive(encoded())
    assert Image.open(io.BytesIO(service.conv1(sent))).format == "PNG"
    counted: list[tuple[int, int]] = []
    found = service.occlusion(sent, lambda *n: counted.append(n))
    assert counted[-1] == (seeing.PLACES**2, seeing.PLACES**2)
    assert found["lowest"] <= found["probability"] + 0.5
    assert Image.open(io.BytesIO(found["picture"])).format == "JPEG"


def test_a_port_in_use_is_one_line(folder: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match="is in use; choose another: --port"):
            check_port("127.0.0.1", port)
        said = refusal("serve", folder / "run", "--port", str(port))
        assert f"port {port} of 127.0.0.1 is in use" in said
    with pytest.raises(UserError, match="cannot listen"):
        check_port("192.0.2.1", 8000)


def test_a_page_without_gradio_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    said = refusal("serve", folder / "run", "--port", "47860")
    assert "pip install 'alexnet[serve]'" in said


def test_an_index_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    model = build("small", 3, torch.Generator().manual_seed(7))
    save_model(tmp_path / "model.safetensors", model, card_of())
    said = refusal("serve", tmp_path, "--index", folder / "index")
    assert "was made with another model" in said
    assert alexnet("serve", folder / "run", "--port", "0").code == 2


# The page and the endpoint


@pytest.fixture(scope="module")
def client(service: Service) -> Any:
    pytest.importorskip("gradio")
    from fastapi.testclient import TestClient

    from alexnet import serving

    app = serving.make_app(service, serving.examples_of(service), "http://here")
    return TestClient(app, raise_server_exceptions=False)


def test_the_page_loads_nothing_from_elsewhere(client: Any) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "Drop a picture here" in client.get("/config").text


def test_the_endpoint_answers_in_the_documented_form(client: Any) -> None:
    reply = client.post("/api/predict", content=encoded())
    assert reply.status_code == 200
    assert reply.headers["cache-control"] == "no-store"
    said = reply.json()
    assert set(said) == {"network", "format", "width", "height", "top5", "nearest"}
    assert set(said["top5"][0]) == {"class", "id", "probability"}
    assert len(said["nearest"]) == 6
    assert set(said["nearest"][0]) == {"name", "class", "distance", "picture"}
    assert "top2" in client.post("/api/predict?top=2&nearest=0", content=encoded()).json()
    assert "/api/predict" in client.get("/api/openapi.json").json()["paths"]


def test_the_map_comes_with_its_progress(client: Any) -> None:
    reply = client.post("/api/occlusion", content=encoded())
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines[0]["total"] == seeing.PLACES**2
    assert lines[-1]["picture"].startswith("data:image/jpeg")
    assert client.post("/api/conv1", content=encoded()).json()["picture"].startswith("data:")


@pytest.mark.parametrize("name", ["predict", "conv1", "occlusion"])
def test_what_is_no_picture_is_refused_over_http(client: Any, name: str) -> None:
    reply = client.post(f"/api/{name}", content=b"no picture")
    assert reply.status_code == 415
    assert list(reply.json()) == ["error"]


def test_a_body_that_hides_its_length_is_not_read_to_its_end(client: Any) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(5):
            yield bytes(1 << 20)

    reply = client.post("/api/predict", content=endless())
    assert reply.status_code == 413


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/file=/etc/passwd",
        "/file/etc/passwd",
        "/gradio_api/upload",
        "/upload",
        "/gradio_api/queue/join",
        "/gradio_api/proxy=http://127.0.0.1:22/",
        "/gradio_api/component_server",
        "/static/../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2fetc/passwd",
        "/assets//etc/passwd",
        "/static/..\\..\\etc\\passwd",
        "/custom_component/x/client/component/../../../../etc/passwd",
        "/api/examples/../../etc/passwd",
        "/docs",
        "/openapi.json",
    ],
)
def test_no_file_of_the_machine_can_be_asked_for(client: Any, path: str) -> None:
    for method in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"):
        status, body = asked(client.app, method, path)
        assert status in (404, 405), (method, path, status)
        assert b"root:" not in body


def asked(app: Any, method: str, path: str) -> tuple[int, bytes]:
    """What the application itself answers, without a client that tidies the path."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"here")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_the_gate_lets_the_page_through(client: Any) -> None:
    assert asked(client.app, "GET", "/theme.css")[0] == 200


def test_another_page_cannot_use_the_endpoint(client: Any) -> None:
    elsewhere = {"origin": "http://elsewhere.example"}
    assert client.post("/api/predict", content=encoded(), headers=elsewhere).status_code == 403
    own = {"origin": "http://testserver"}
    assert client.post("/api/predict", content=encoded(), headers=own).status_code == 200


def test_nothing_that_is_sent_is_left_on_the_disk(
    client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("predict", "conv1", "occlusion"):
        assert client.post(f"/api/{name}", content=encoded()).status_code == 200
        assert client.post(f"/api/{name}", content=encoded()[:500]).status_code == 422
    assert not list(tmp_path.rglob("*"))


def test_many_at_once_get_the_answers_that_they_would_get_alone(service: Service) -> None:
    bodies = [encoded((60 + n, 64)) for n in range(4)]
    expected = [service.predict(service.receive(body)) for body in bodies]
    found: list[Any] = [None] * 16

    def ask(number: int) -> None:
        with service.admit("one", 1):
            found[number] = service.predict(service.receive(bodies[number % 4]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected[number % 4] for number in range(16)]
