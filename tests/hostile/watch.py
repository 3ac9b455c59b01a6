"""Sees what checking an answer does to the world: files, connections, processes, memory. Observes, prevents nothing."""

import contextlib
import hashlib
import pathlib
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.hostile.grammar import Bait

_WATCHED = ("socket.", "subprocess.", "os.", "shutil.", "ctypes.", "pty.", "tempfile.", "urllib.", "pickle.", "mmap.")


class Canary:
    """Folders to work in (`cwd`, `home`, `tmp`) and a port to listen on: nothing may change there, nobody may call."""

    def __init__(self, place: pathlib.Path):
        self.folders = {name: place / name for name in ("cwd", "home", "tmp")}
        for folder in self.folders.values():
            folder.mkdir(parents=True)
            (folder / "notes.txt").write_text("left alone\n", encoding="utf-8")
        self._server = socket.create_server(("127.0.0.1", 0))
        self._connections = 0
        self.bait = Bait(str(self.folders["tmp"] / "bait"), self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._before = self._snapshot()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # the server is closed at the end
            while True:
                connection, _ = self._server.accept()
                self._connections += 1
                connection.close()

    def _snapshot(self) -> dict[str, str]:
        found = {}
        for folder in self.folders.values():
            for path in [folder, *folder.rglob("*")]:
                about = path.lstat()
                content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
                found[str(path)] = f"{about.st_mode} {about.st_size} {about.st_mtime_ns} {content}"
        return found

    def effects(self) -> list[str]:
        """What has happened since the beginning, one line each."""
        after = self._snapshot()
        changed = sorted(path for path in self._before | after if self._before.get(path) != after.get(path))
        called = [f"{self._connections} connections to port {self.bait.port}"] if self._connections else []
        return [f"changed: {path!r}" for path in changed] + called

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(timeout=5.0)


class Caller:
    """Audit events in this process while the thread that made it asks; a hook cannot be removed, so make one."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self._watched_thread = 0
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self._watched_thread = threading.get_ident()
        try:
            yield
        finally:
            self._watched_thread = 0

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != self._watched_thread:
            return
        if event == "open":
            is_module = str(args[0]).endswith((".py", ".pyc", ".so")) and args[1] in ("r", "rb", None)
            if not is_module:
                self.effects.append(f"caller: open {args[0]!r:.80} {args[1]}")
        elif event in ("compile", "exec"):
            name = args[0].co_filename if event == "exec" else str(args[1])
            if name.startswith("<") and not name.startswith("<frozen "):
                self.effects.append(f"caller: {event} of {name:.80}")
        elif event.startswith(_WATCHED) and event not in ("os.listdir", "os.scandir"):
            self.effects.append(f"caller: {event} {args!r:.80}")


class Workers:
    """Looks at the worker processes from outside, many times a second: memory, children, open files."""

    def __init__(self, pids: Callable[[], list[int]], interval_s: float = 0.05):
        self.peak_address_mb = self.peak_resident_mb = self.looks = 0
        self.effects: set[str] = set()
        self._pids, self._interval = pids, interval_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over.wait(self._interval):
            self.look()

    def look(self) -> None:
        for pid in self._pids():
            with contextlib.suppress(OSError, ValueError):  # it ended meanwhile
                self._look_at(pathlib.Path("/proc") / str(pid))

    def _look_at(self, place: pathlib.Path) -> None:
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines() if ":" in line)
        if "VmPeak" not in status:
            return
        if "worker" not in (place / "cmdline").read_text():  # between fork and exec it still is a copy of its parent
            return
        self.looks += 1
        self.peak_address_mb = max(self.peak_address_mb, int(status["VmPeak"].split()[0]) // 1024)
        self.peak_resident_mb = max(self.peak_resident_mb, int(status["VmHWM"].split()[0]) // 1024)
        if int(status["Threads"]) > 1:
            self.effects.add(f"worker: {status['Threads'].strip()} threads")
        for children in place.glob("task/*/children"):
            if children.read_text().strip():
                self.effects.add("worker: a child process")
        for descriptor in place.glob("fd/*"):
            target = str(descriptor.readlink())
            known = target.startswith("pipe:") or target == "/dev/null" or target.endswith("/statm")
            if not known and not target.endswith((".py", ".pyc", ".so")):
                self.effects.add(f"worker: holds {target:.80}")

    def close(self) -> None:
        self._is_over.set()
        self._thread.join(timeout=5.0)
