"""A bar for long work, the same in every command, on a terminal; one line elsewhere.

Not here: the display of a training (`log.py`).
"""

from collections.abc import Callable
from typing import Any

from rich.console import Console


class Progress:
    """A bar for long work: `with Progress(console, title) as advance: advance(done, total)`."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.progress import Progress as Bar

        self.bar = Bar(console=console, transient=True, disable=not console.is_terminal)
        self.console, self.title = console, title
        self.task: Any = None

    def __enter__(self) -> Callable[[int, int], None]:
        self.bar.start()
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, done: int, total: int) -> None:
        if self.task is None:
            self.task = self.bar.add_task(self.title, total=total or None)  # of a pipe, unknown
            if self.bar.disable:
                of = f": {total:,}" if total else ""
                self.console.print(f"{self.title}{of}", highlight=False)
        self.bar.update(self.task, completed=done)
