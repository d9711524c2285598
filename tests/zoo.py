"""A zoo of pictures that are broken, odd or no pictures at all, each with what is to become of it.

`zoo()` gives the animals. What is damaged is made of one photograph-like picture, so that a
picture that was silently filled up with one value can be told from a whole one.
"""

import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

LEFT_OUT = "left out"

WIDTH, HEIGHT = 300, 260


@dataclass(frozen=True)
class Animal:
    """A file; the kinds that `check` must find in it; what its first finding's action begins with.

    An animal without `kinds` is an ordinary picture. One that is not left out must not be mostly
    of one value, unless it is `plain`.
    """

    name: str
    data: bytes
    kinds: frozenset[str]
    action: str = ""
    plain: bool = False

    @property
    def left_out(self) -> bool:
        return self.action == LEFT_OUT


def photograph(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Image.Image:
    """Smooth light, some edges, a little noise: it compresses as photographs do."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    pixels = np.zeros((height, width, 3))
    for channel in range(3):
        a, b, c, d = generator.uniform(2, 9, 4)
        pixels[..., channel] = 128 + 55 * np.sin(a * x + b * y + c) + 45 * np.cos(d * x * y * 4)
    for _ in range(6):
        cx, cy, radius = generator.uniform(0, 1, 3) * (1, height / width, 0.2)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        pixels[inside] = 0.4 * pixels[inside] + 0.6 * generator.uniform(20, 235, 3)
    pixels += generator.normal(0, 4, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_bomb(side: int = 30_000) -> bytes:
    """A whole PNG of side x side black pixels in a megabyte or so, made a row at a time."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + side // 8)  # 1 bit per pixel
    body = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_of_16_bits() -> bytes:
    pixels = np.asarray(photograph()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b"")


def tiff_with_entries(*entries: tuple[int, int, int]) -> bytes:
    """A TIFF of one directory: (tag, value as LONG) each; no pixels."""
    body = b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def scan_start(jpeg: bytes) -> int:
    return jpeg.index(b"\xff\xda")


def marked_as_ycck(cmyk: bytes) -> bytes:
    place = cmyk.index(b"Adobe") + 11
    return cmyk[:place] + b"\x02" + cmyk[place + 1 :]


def flipped(data: bytes, place: int, bits: int = 0x10) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def zeroed_from(data: bytes, place: int) -> bytes:
    return data[:place] + bytes(len(data) - place)


def zoo() -> Iterator[Animal]:
    yield from _truncated()
    yield from _damaged()
    yield from _no_pictures()
    yield from _misnamed()
    yield from _modes()
    yield from _turned()
    yield from _several_frames()
    yield from _sizes()
    yield from _fine()


def _out(name: str, data: bytes, *kinds: str) -> Animal:
    return Animal(name, data, frozenset(kinds), LEFT_OUT)


def _odd(name: str, data: bytes, *kinds: str, action: str, plain: bool = False) -> Animal:
    return Animal(name, data, frozenset(kinds), action, plain)


def _truncated() -> Iterator[Animal]:
    exif = exif_of(1).tobytes() + bytes(range(200))
    jpeg = encoded(photograph(), "JPEG", quality=90, exif=exif)
    scan, end = scan_start(jpeg), len(jpeg)
    places = {
        "in-signature": 2,
        "after-signature": 4,
        "in-exif": jpeg.index(b"Exif") + 40,
        "in-quantization-tables": jpeg.index(b"\xff\xdb") + 20,
        "in-frame-header": jpeg.index(b"\xff\xc0") + 6,
        "in-huffman-tables": jpeg.index(b"\xff\xc4") + 12,
        "in-scan-header": scan + 5,
        "after-scan-header": scan + 14,
        "early-in-scan": scan + 500,
        "in-mid-scan": (scan + end) // 2,
        "late-in-scan": end - 200,
    }
    for name, place in places.items():
        kind = {2: "not-a-picture", 4: "broken"}.get(place, "truncated")
        yield _out(f"jpeg-cut-{name}.jpg", jpeg[:place], kind)
    for name in ("early-in-scan", "in-mid-scan", "late-in-scan"):
        data = jpeg[: places[name]] + b"\xff\xd9"
        yield _out(f"jpeg-cut-{name}-with-end-marker.jpg", data, "truncated")
    restarts = encoded(photograph(), "JPEG", quality=90, restart_marker_rows=1)
    place = restarts.index(b"\xff\xd5") + 2
    yield _out(
        "jpeg-cut-at-a-restart-with-end-marker.jpg", restarts[:place] + b"\xff\xd9", "truncated"
    )
    progressive = encoded(photograph(), "JPEG", quality=90, progressive=True)
    half = len(progressive) // 2
    yield _out("jpeg-progressive-cut.jpg", progressive[:half], "truncated")
    yield _out(
        "jpeg-progressive-cut-with-end-marker.jpg", progressive[:half] + b"\xff\xd9", "truncated"
    )
    grey = encoded(photograph().convert("L"), "JPEG")
    yield _out(
        "jpeg-grey-cut-with-end-marker.jpg", grey[: len(grey) // 2] + b"\xff\xd9", "truncated"
    )
    cmyk = encoded(photograph().convert("CMYK"), "JPEG")
    yield _out(
        "jpeg-cmyk-cut-with-end-marker.jpg", cmyk[: len(cmyk) // 2] + b"\xff\xd9", "truncated"
    )
    for suffix, kind in {
        "png": "truncated",
        "gif": "truncated",
        "bmp": "truncated",
        "tiff": "truncated",
        "ppm": "truncated",
        "webp": "broken",
        "avif": "broken",
    }.items():
        data = encoded(photograph(), suffix.upper())
        yield _out(f"{suffix}-cut.{suffix}", data[: len(data) // 2], kind)
        yield _out(f"{suffix}-cut-in-header.{suffix}", data[:13], *_kind_of_cut_header(suffix))


def _kind_of_cut_header(suffix: str) -> tuple[str, ...]:
    return {"bmp": ("not-a-picture",), "ppm": ("truncated",)}.get(suffix, ("broken",))


def _damaged() -> Iterator[Animal]:
    jpeg = encoded(photograph(), "JPEG", quality=90)
    png = encoded(photograph(), "PNG")
    yield _out("jpeg-flip-in-signature.jpg", flipped(jpeg, 1), "not-a-picture")
    yield _out(
        "jpeg-flip-in-frame-header.jpg", flipped(jpeg, jpeg.index(b"\xff\xc0") + 9), "broken"
    )
    yield _out("png-flip-in-header.png", flipped(png, 18), "broken")
    yield _out("png-flip-in-pixels.png", flipped(png, len(png) // 2), "broken")
    yield _out(
        "png-zeros-from-the-middle.png", zeroed_from(png, len(png) // 2), "broken", "zero-filled"
    )
    yield _out(
        "jpeg-zeros-from-the-middle.jpg",
        zeroed_from(jpeg, len(jpeg) // 2),
        "truncated",
        "zero-filled",
    )
    checksum = len(png) - 12 - 2
    yield _out("png-wrong-checksum.png", flipped(png, checksum), "broken")
    lzw = encoded(photograph(), "TIFF", compression="tiff_lzw")
    hole = lzw[:100_000] + bytes(5_000) + lzw[105_000:]
    yield _out("tiff-hole-in-pixels.tiff", hole, "broken")
    for suffix in ("bmp", "ppm"):
        data = zeroed_from(encoded(photograph(), suffix.upper()), 150_000)
        yield _odd(f"{suffix}-zeros-at-the-end.{suffix}", data, "zero-filled", action="kept")
    padded = jpeg + bytes(4096)
    yield _odd("jpeg-zeros-behind-the-end.jpg", padded, "zero-filled", action="kept")
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(40))
    damaged_exif = encoded(photograph(), "JPEG", exif=exif)
    yield _odd("jpeg-damaged-exif.jpg", damaged_exif, "warning", action="kept")


def _no_pictures() -> Iterator[Animal]:
    texts = {
        "empty.jpg": b"",
        "text.jpg": b"This used to be a picture.\n",
        "page-not-found.jpg": b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>",
        "page-with-byte-order-mark.jpg": b"\xef\xbb\xbf<html><head></head></html>",
        "drawing.svg.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "archive.jpg": b"PK\x03\x04" + bytes(60),
        "document.jpg": b"%PDF-1.7\n1 0 obj",
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "zeros.jpg": bytes(50_000),
        "noise.jpg": np.random.default_rng(5).bytes(5_000),
        "utf-16.jpg": "text".encode("utf-16"),
        "error.jpg": b'{"error": "rate limit exceeded"}',
    }
    for name, data in texts.items():
        yield _out(name, data, "not-a-picture" if data else "empty")


def _misnamed() -> Iterator[Animal]:
    picture = photograph()
    for suffix, kind in {"JPEG": "PNG", "png": "JPEG", "jpg": "WEBP", "gif": "BMP"}.items():
        name = f"really-{kind.lower()}.{suffix}"
        yield _odd(name, encoded(picture, kind), "wrong-name", action=f"read as {kind}")
    gif = encoded(picture, "GIF")
    yield _odd("really-gif.jpg", gif, "wrong-name", "palette", action="read as GIF")


def _modes() -> Iterator[Animal]:
    picture = photograph()
    grey = picture.convert("L")
    deep = np.asarray(grey).astype(np.uint16) * 257
    to_rgb, on_white = "converted to RGB", "shown on white"
    yield _odd("mode-1.png", encoded(picture.convert("1"), "PNG"), "grey", action=to_rgb)
    yield _odd("mode-l.png", encoded(grey, "PNG"), "grey", action=to_rgb)
    yield _odd("mode-l.jpg", encoded(grey, "JPEG"), "grey", action=to_rgb)
    yield _odd("mode-la.png", encoded(picture.convert("LA"), "PNG"), "alpha", action=on_white)
    palette = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    yield _odd("mode-p.png", encoded(palette, "PNG"), "palette", action=to_rgb)
    transparent = encoded(palette, "PNG", transparency=3)
    yield _odd("mode-p-transparent.png", transparent, "alpha", action=on_white)
    yield _odd("mode-pa.tiff", encoded(picture.convert("PA"), "TIFF"), "alpha", action=on_white)
    for kind in ("PNG", "WEBP", "TIFF"):
        data = encoded(picture.convert("RGBA"), kind)
        if kind != "WEBP":  # which drops an alpha channel that hides nothing
            yield _odd(f"mode-rgba.{kind.lower()}", data, "alpha", action=on_white)
    cmyk = encoded(picture.convert("CMYK"), "JPEG")
    yield _odd("mode-cmyk.jpg", cmyk, "cmyk", action=to_rgb)
    yield _odd("mode-ycck.jpg", marked_as_ycck(cmyk), "ycck", action=to_rgb)
    inks = encoded(picture.convert("CMYK"), "TIFF")
    yield _odd("mode-cmyk.tiff", inks, "cmyk", action=to_rgb)
    ycbcr = encoded(picture.convert("YCbCr"), "TIFF")
    yield _odd("mode-ycbcr.tiff", ycbcr, "colour-space", action=to_rgb)
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(deep), kind)
        name = f"mode-16-bit-grey.{kind.lower()}"
        yield _odd(name, data, "16-bit", action="converted to RGB from the upper 8 bits")
    yield _odd("mode-16-bit-colour.png", png_of_16_bits(), "16-bit", action="the upper 8 bits")
    values = Image.fromarray(deep.astype(np.int32))
    yield _odd("mode-i.tiff", encoded(values, "TIFF"), "16-bit", action="converted to RGB from")
    beyond = Image.fromarray(deep.astype(np.int32) * 1000)
    yield _out("mode-i-beyond-16-bits.tiff", encoded(beyond, "TIFF"), "unsupported")
    yield _out("mode-f.tiff", encoded(grey.convert("F"), "TIFF"), "unsupported")
    lab = Image.frombytes("LAB", picture.size, picture.tobytes())
    lab_data = encoded(lab, "TIFF")
    yield _odd("mode-lab.tiff", lab_data, "colour-space", action=to_rgb, plain=True)


def _turned() -> Iterator[Animal]:
    for orientation in range(2, 9):
        data = encoded(photograph(), "JPEG", exif=exif_of(orientation))
        action = {3: "turned", 2: "mirrored", 4: "mirrored"}.get(orientation, "turned by 90")
        yield _odd(f"orientation-{orientation}.jpg", data, "rotated", action=action)
    nonsense = encoded(photograph(), "JPEG", exif=exif_of(9))
    yield Animal("orientation-9.jpg", nonsense, frozenset())


def _several_frames() -> Iterator[Animal]:
    frames = [photograph(seed=seed) for seed in (0, 1, 2)]
    several = {"save_all": True, "append_images": frames[1:]}
    first = "the first of 3"
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, **several)
        yield _odd(f"animated.{kind.lower()}", data, "animated", action=first)
    gif = encoded(frames[0], "GIF", **several)
    yield _odd("animated.gif", gif, "animated", "palette", action=first)
    yield _odd(
        "animated-cut.gif", gif[: len(gif) * 5 // 6], "animated", "palette", action="the first of 3"
    )
    pages = encoded(frames[0], "TIFF", **several)
    yield _odd("pages.tiff", pages, "several-pictures", action=first)
    stereo = encoded(frames[0], "MPO", **several)
    yield _odd("stereo.jpg", stereo, "several-pictures", action=first)


def _sizes() -> Iterator[Animal]:
    yield _out("bomb.png", png_bomb(), "enormous")
    screen = b"GIF89a" + struct.pack("<HH", 60_000, 60_000) + b"\x80\0\0" + bytes(6)
    frame = b"," + struct.pack("<HHHH", 0, 0, 60_000, 60_000) + b"\0\x02\x02L\x01\0;"
    yield _out("bomb.gif", screen + frame, "enormous")
    tags = ((256, 1, 100_000), (257, 1, 100_000), (258, 1, 8), (259, 1, 1), (262, 1, 1))
    yield _out(
        "bomb.tiff", tiff_with_entries(*tags, (273, 1, 8), (278, 1, 1), (279, 1, 8)), "enormous"
    )
    yield _out("bomb.ppm", b"P6 30000 30000 255\n", "enormous")
    one = encoded(photograph(1, 1), "PNG")
    yield _odd("1x1.png", one, "tiny", "blank", action="enlarged from 1 px", plain=True)
    for width, height in ((1, 20_000), (20_000, 1)):
        data = encoded(photograph(width, height), "PNG")
        yield _odd(
            f"{width}x{height}.png",
            data,
            "tiny",
            "extreme-shape",
            action="enlarged from 1 px",
            plain=True,
        )
    thumbnail = encoded(photograph(100, 80), "JPEG")
    yield _odd("thumbnail.jpg", thumbnail, "small", action="enlarged from 80 px")
    wide = encoded(photograph(1300, 260), "JPEG")
    yield _odd("panorama.jpg", wide, "extreme-shape", action="cut to 20%")
    white = encoded(Image.new("RGB", (300, 260), (255, 255, 255)), "PNG")
    yield _odd("white.png", white, "blank", action="kept", plain=True)
    mid_grey = encoded(Image.new("RGB", (300, 260), (128, 128, 128)), "JPEG")
    yield _odd("mid-grey.jpg", mid_grey, "blank", action="kept", plain=True)


def _fine() -> Iterator[Animal]:
    picture = photograph()
    fine = {
        "photograph.JPEG": encoded(picture, "JPEG"),
        "optimized.jpg": encoded(picture, "JPEG", optimize=True),
        "progressive.jpg": encoded(picture, "JPEG", progressive=True),
        "restarts.jpg": encoded(picture, "JPEG", restart_marker_blocks=2),
        "photograph.png": encoded(picture, "PNG"),
        "photograph.webp": encoded(picture, "WEBP"),
        "photograph.avif": encoded(picture, "AVIF"),
        "photograph.bmp": encoded(picture, "BMP"),
        "photograph.tif": encoded(picture, "TIFF", compression="tiff_lzw"),
        "no-suffix": encoded(picture, "JPEG", quality=96),
    }
    for name, data in fine.items():
        yield Animal(name, data, frozenset())


@dataclass(frozen=True)
class Archive:
    """A source of one file, beside whole pictures; what is told, or the mistake that is raised.

    `refused` is a part of the name and of the reason of something refused; `mistake` a part of
    the UserError.
    """

    name: str
    data: bytes
    refused: tuple[str, str] = ("", "")
    mistake: str = ""


def _tar(*extra: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for number in range(6):
            data = encoded(photograph(64, 64, seed=number), "JPEG")
            archive.addfile(_member(f"n{number % 2}/{number}.jpg", len(data)), BytesIO(data))
        for member, data in extra:
            archive.addfile(member, BytesIO(data))
    return buffer.getvalue()


def _member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member


def _parquet(**columns: list[Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def bad_archives() -> Iterator[Archive]:
    """Archives and tables that are hostile or damaged."""
    outside = "leads out of the archive"
    yield Archive("absolute.tar", _tar((_member("/etc/n0/x.jpg"), b"")), ("/etc/n0/x.jpg", outside))
    yield Archive("parent.tar", _tar((_member("n0/../../x.jpg"), b"")), ("../../x.jpg", outside))
    for name, kind, reason in (
        ("symbolic-link", tarfile.SYMTYPE, "link"),
        ("hard-link", tarfile.LNKTYPE, "link"),
        ("device", tarfile.CHRTYPE, "device"),
        ("pipe", tarfile.FIFOTYPE, "pipe"),
    ):
        yield Archive(
            f"{name}.tar", _tar((_member("n0/x.jpg", 0, kind), b"")), ("n0/x.jpg", reason)
        )
    whole = _tar()
    claim = _member("n0/x.jpg", 1 << 40).tobuf(tarfile.GNU_FORMAT)
    end = len(_tar_without_end())
    yield Archive("absurd-size.tar", whole[:end] + claim, ("n0/x.jpg", "more than"))
    yield Archive("cut-in-picture.tar", whole[: end - 700], (".tar", ""))
    yield Archive("cut-without-end.tar", whole[:end], (".tar", "cut off"))
    spoiled = whole[:end] + bytes(range(256)) * 2 + whole[:end]
    yield Archive("damaged-header.tar", spoiled, (".tar", "damaged header"))
    yield Archive("two-in-one.tar", whole + whole, (".tar", "behind the archive's end"))
    yield Archive("no-archive.tar", b"<html>404</html>" * 100, mistake="no-archive.tar")
    yield Archive("zeros.tar", bytes(20_480), mistake="zeros.tar")
    yield Archive("empty.tar", b"", mistake="empty.tar")
    pictures = [encoded(photograph(64, 64, seed=seed), "JPEG") for seed in range(6)]
    images = [{"bytes": data, "path": f"{row}.jpg"} for row, data in enumerate(pictures)]
    table = _parquet(image=images, label=[0, 0, 0, 1, 1, 1])
    yield Archive("cut.parquet", table[: len(table) // 2], mistake="cut.parquet")
    yield Archive("zeros-at-the-end.parquet", zeroed_from(table, len(table) - 400), mistake="zeros")
    yield Archive("no-table.parquet", b"PAR1 is not enough", mistake="no-table.parquet")
    yield Archive("other-columns.parquet", _parquet(text=["a"], x=[1]), mistake="other-columns")
    unlabelled = _parquet(image=images, label=[0, 0, None, 1, 1, 1])
    yield Archive("a-row-without-label.parquet", unlabelled, (".parquet", "label"))


def _tar_without_end() -> bytes:
    """Up to the last member's padding: an archive ends in two blocks of zeros and more filling."""
    data = _tar()
    with tarfile.open(fileobj=BytesIO(data)) as archive:
        last = archive.getmembers()[-1]
    return data[: last.offset_data + -(-last.size // 512) * 512]
