"""A bar for long work, the same in every command, on a terminal; one line elsewhere.

Not here: the display of a training (`log.py`).
"""

from typing import Any, Protocol

from rich.console import Console


class Advance(Protocol):
    def __call__(self, done: int, total: int, title: str = "") -> None: ...


class Progress:
    """A bar for long work: `with Progress(console, title) as advance: advance(done, total)`."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.progress import Progress as Bar

        self.bar = Bar(console=console, transient=True, disable=not console.is_terminal)
        self.console, self.title = console, title
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Advance:
        self.bar.start()
        return self.advance

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, done: int, total: int, title: str = "") -> None:
        """Another `title` than the last begins another bar."""
        title = title or self.title
        if title not in self.tasks:
            self.tasks[title] = self.bar.add_task(title, total=total or None)  # of a pipe, unknown
            if self.bar.disable:
                of = f": {total:,}" if total else ""
                self.console.print(f"{title}{of}", highlight=False)
        self.bar.update(self.tasks[title], completed=done)
