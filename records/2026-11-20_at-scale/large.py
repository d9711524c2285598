"""Peak memory of `prepare` where single things are large: pictures in a pipe, a group of rows.

python records/2026-11-20_at-scale/large.py WORK pipe
python records/2026-11-20_at-scale/large.py WORK table        (3 GB)
"""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from at_scale import add, memory_mb
from PIL import Image

PREPARE = (sys.executable, "-m", "alexnet", "prepare")


def noise(side: int, form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def measured(*arguments: str, feed: Callable[[IO[bytes]], None] | None = None) -> dict[str, float]:
    started, peak = time.monotonic(), 0.0
    stdin = None if feed is None else subprocess.PIPE
    with subprocess.Popen(arguments, stdin=stdin, stdout=subprocess.DEVNULL) as process:
        if feed is not None:
            threading.Thread(target=feed, args=(process.stdin,)).start()
        while process.poll() is None:
            peak = max(peak, memory_mb(process.pid))
            time.sleep(0.05)
    assert process.returncode == 0, process.returncode
    return {"seconds": round(time.monotonic() - started, 1), "peak_mb": round(peak)}


def pipe(work: Path) -> None:
    for side, count, processes in ((2450, 120, 8), (7746, 16, 2)):
        data = noise(side, "BMP")

        def feed(file: IO[bytes], data: bytes = data, count: int = count) -> None:
            with tarfile.open(fileobj=file, mode="w|") as tar:
                for number in range(count):
                    add(tar, f"train/class{number % 2}/{number}.bmp", data)
            file.close()

        target = work / f"large-{side}"
        flags = ("--kind", "folder", "--processes", str(processes))
        found = measured(*PREPARE, "-", str(target), *flags, feed=feed)
        shutil.rmtree(target)
        facts = {"bytes_each": len(data), "pictures": count, "processes": processes}
        print(json.dumps({**facts, **found}), flush=True)


def table(work: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows, jpeg, draw = 10_000, noise(256, "JPEG"), np.random.default_rng(0)
    images = [{"bytes": jpeg + draw.bytes(20), "path": f"{row}.jpg"} for row in range(rows)]
    contents = pa.table({"image": images, "label": [row % 2 for row in range(rows)]})
    for page in (None, 2**30):
        path, target = work / "one-group.parquet", work / "from-one-group"
        large = {"data_page_size": page, "write_batch_size": rows} if page else {}
        pq.write_table(contents, path, row_group_size=rows, **large)
        found = measured(*PREPARE, str(path), str(target), "--image-px", "64")
        facts = {"file_bytes": path.stat().st_size, "groups_of_rows": 1, "page_bytes": page}
        print(json.dumps({**facts, **found}), flush=True)
        shutil.rmtree(target)
        path.unlink()


if __name__ == "__main__":
    {"pipe": pipe, "table": table}[sys.argv[2]](Path(sys.argv[1]))
