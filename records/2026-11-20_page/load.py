"""Many at once, and hostile: what a running `alexnet serve` answers, and the memory that it takes.

    alexnet serve runs/imagenette --index INDEX --per-minute 1e9 &
    python load.py concurrent http://127.0.0.1:7860 PID PICTURES
    python load.py hostile http://127.0.0.1:7860 PID PICTURES

`concurrent`: 200 requests at the same moment, ten rounds, each answer compared with the one that
the picture got alone. `hostile`: 10,000 bodies made from real pictures by a seed; each must be
answered by a result or by a refusal of one line.
"""

import collections
import http.client
import io
import json
import random
import struct
import sys
import threading
import time
import zlib
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

ROUNDS, AT_ONCE, HOSTILE, SENDERS = 10, 200, 10_000, 8


def memory_mb(pid: str) -> dict[str, float]:
    """Anonymous memory of the server, and of it with its decoders."""

    def of(process: str) -> float:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
        return 0.0

    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {"server": of(pid), "with_decoders": of(pid) + sum(map(of, children))}


def send(connection: http.client.HTTPConnection, body: bytes) -> tuple[int, dict]:
    connection.request("POST", "/api/predict", body)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


def concurrent(host: str, pid: str, pictures: list[bytes]) -> None:
    alone = http.client.HTTPConnection(host, timeout=120)
    expected = [send(alone, body)[1] for body in pictures]
    print(json.dumps({"before": memory_mb(pid)}), flush=True)
    for number in range(ROUNDS):
        start = threading.Barrier(AT_ONCE + 1)
        statuses: collections.Counter[str] = collections.Counter()
        seconds: list[float] = []

        def ask(which: int) -> None:
            connection = http.client.HTTPConnection(host, timeout=120)
            start.wait()
            begun = time.perf_counter()
            try:
                status, said = send(connection, pictures[which % len(pictures)])
                same = close(said, expected[which % len(pictures)])
                statuses[str(status) if same else f"{status}, another answer"] += 1
            except OSError as error:
                statuses[type(error).__name__] += 1
            seconds.append(time.perf_counter() - begun)

        threads = [threading.Thread(target=ask, args=(which,)) for which in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        begun = time.perf_counter()
        start.wait()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - begun
        seconds.sort()
        print(json.dumps({
            "round": number + 1,
            "answers": dict(statuses),
            "seconds": round(took, 2),
            "median_s": round(seconds[AT_ONCE // 2], 2),
            "slowest_s": round(seconds[-1], 2),
            "memory_mb": memory_mb(pid),
        }), flush=True)  # fmt: skip


def close(one: dict, other: dict) -> bool:
    """The same classes and neighbours, probabilities to rounding."""
    try:
        pairs = list(zip(one["top5"], other["top5"], strict=True))
        near = [n["name"] for n in one["nearest"]] == [n["name"] for n in other["nearest"]]
        return near and all(
            a["class"] == b["class"] and abs(a["probability"] - b["probability"]) < 1e-4
            for a, b in pairs
        )
    except (KeyError, ValueError):
        return False


def hostile_bodies(pictures: list[bytes]):
    """(kind, body), for ever; a pure function of the pictures."""
    rng = random.Random(0)
    seeds: list[bytes] = []
    for data in pictures:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
            buffer = io.BytesIO()
            image.resize((96, 80)).save(buffer, form)
            seeds.append(buffer.getvalue())
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", progressive=True)
        seeds.append(buffer.getvalue())

    def png(width: int, height: int, pixels: bytes) -> bytes:
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(
                ">I", zlib.crc32(name + data)
            )  # fmt: skip

        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(
            b"IDAT", zlib.compress(pixels)
        ) + chunk(b"IEND", b"")  # fmt: skip

    bomb = png(7900, 7900, bytes(7900 * (7900 * 3 + 1)))
    others = [
        ("empty", b""), ("text", b"no picture at all" * 40), ("zip", b"PK\x03\x04" + bytes(500)),
        ("html", b"<script>alert(1)</script>" * 9), ("svg", b"<svg xmlns='http://x'/>"),
        ("pickle", b"cos\nsystem\n(S'true'\ntR."), ("huge png", png(2**31 - 1, 2**31 - 1, b"x")),
        ("no width", png(0, 5, b"x")), ("bomb", bomb), ("elf", b"\x7fELF" + bytes(100)),
        ("eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ]  # fmt: skip
    while True:
        data = bytearray(rng.choice(seeds))
        match rng.randrange(8):
            case 0:
                kind = "bits flipped"
                for _ in range(rng.choice((1, 3, 20, 200))):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case 1:
                kind, data = "cut", data[: rng.randrange(len(data))]
            case 2:
                kind = "header changed"
                for _ in range(rng.choice((1, 2, 6))):
                    data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
            case 3:
                other = rng.choice(seeds)
                kind, data = (
                    "spliced",
                    data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :],
                )
            case 4:
                kind = "bytes put in"
                at = rng.randrange(len(data))
                data[at:at] = rng.randbytes(rng.choice((1, 7, 300)))
            case 5:
                kind, data = (
                    "noise",
                    rng.choice(
                        [
                            b"",
                            b"\xff\xd8\xff",
                            b"\x89PNG\r\n\x1a\n",
                            b"GIF89a",
                            b"BM",
                            b"RIFF\x00\x10\x00\x00WEBPVP8 ",
                        ]
                    )
                    + rng.randbytes(400),
                )
            case 6:
                kind = "zeros inside"
                at = rng.randrange(len(data))
                data[at : at + 200] = bytes(200)
            case _:
                weights = [0.1 if name == "bomb" else 1 for name, _ in others]
                kind, data = rng.choices(others, weights)[0]
        yield kind, bytes(data)


def hostile(host: str, pid: str, pictures: list[bytes]) -> None:
    bodies, lock = hostile_bodies(pictures), threading.Lock()
    left = HOSTILE
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    slowest = 0.0

    def work() -> None:
        nonlocal left, slowest
        connection = http.client.HTTPConnection(host, timeout=180)
        while True:
            with lock:
                if left == 0:
                    return
                left -= 1
                kind, body = next(bodies)
                done = HOSTILE - left
            begun = time.perf_counter()
            try:
                status, said = send(connection, body)
                answer = str(status)
                clean = (status == 200 and len(said["top5"]) == 5) or (
                    status in (400, 413, 415, 422) and "\n" not in said["error"]
                )
                if not clean:
                    answer += f" NOT CLEAN: {json.dumps(said)[:200]}"
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                answer = f"NOT CLEAN: {type(error).__name__} {error}"[:200]
                connection = http.client.HTTPConnection(host, timeout=180)
            with lock:
                seen[kind, answer] += 1
                slowest = max(slowest, time.perf_counter() - begun)
            if done % 1000 == 0:
                print(json.dumps({"sent": done, "memory_mb": memory_mb(pid)}), flush=True)

    begun = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table: dict[str, dict[str, int]] = {}
    for (kind, answer), count in sorted(seen.items()):
        table.setdefault(kind, {})[answer] = count
    not_clean = sum(count for (_, answer), count in seen.items() if "NOT CLEAN" in answer)
    status, said = send(http.client.HTTPConnection(host, timeout=60), pictures[0])
    print(json.dumps({
        "hostile": sum(seen.values()),
        "not_clean": not_clean,
        "answers": table,
        "seconds": round(time.perf_counter() - begun, 1),
        "slowest_s": round(slowest, 2),
        "a_picture_after_it_all": [status, said["top5"][0]["class"]],
    }, indent=1), flush=True)  # fmt: skip


if __name__ == "__main__":
    what, address, pid, folder = sys.argv[1:]
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    chosen = [path.read_bytes() for path in files[:: max(1, len(files) // 20)]][:20]
    {"concurrent": concurrent, "hostile": hostile}[what](urlsplit(address).netloc, pid, chosen)
