"""The live panel at the bottom of a terminal: how far the run is, drawn by a thread that takes little of the CPU."""

import atexit
import dataclasses
import threading
import time
from collections import deque
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

# A picture that took t of CPU time is followed by the next one once the process has had t / CPU_SHARE of it. A process
# that waits (for a device, or for a share of a busy machine) draws every MAX_INTERVAL_S all the same.
CPU_SHARE = 0.004
MIN_INTERVAL_S, MAX_INTERVAL_S = 0.25, 3.0
MAX_WIDTH = 100  # a line of text is easier to read, and a smaller window has less to wrap
_NUM_ALARMS = 3
_BAR = 24


@dataclasses.dataclass
class PanelState:
    """What the panel shows; the run changes it, the panel's thread reads it.

    Attributes:
      phase, total, done, detail, phase_began: of the phase that runs, "" between two; it began at a monotonic time.
      step, num_steps, round_index, num_rounds: steps and rounds done and planned; 0 planned ones are not known.
      tokens_per_second: of the last training step; None before the first one.
      ends_at: expected end, a monotonic time; None if there is nothing to expect it from.
      accuracy: the last evaluation, as text.
      alarms: the last ones, as text.
      began: when this process began, a monotonic time.
    """

    phase: str = ""
    total: int | None = None
    done: float = 0.0
    detail: str = ""
    phase_began: float = 0.0
    step: int = 0
    num_steps: int = 0
    round_index: int = 0
    num_rounds: int = 0
    tokens_per_second: float | None = None
    ends_at: float | None = None
    accuracy: str = ""
    alarms: deque[str] = dataclasses.field(default_factory=lambda: deque(maxlen=_NUM_ALARMS))
    began: float = dataclasses.field(default_factory=time.monotonic)

    def take_row(self, kind: str, step: int, values: dict[str, Any], machine: dict[str, Any]) -> None:
        """Takes over what a metric row says."""
        self.step = step
        if (number := values.get("round")) is not None:
            self.round_index = number
        if kind == "train":
            self.tokens_per_second = machine.get("tokens_per_second")
            self.alarms.extend(f"{name} (step {step})" for name in values.get("alarms", ()))
        if kind == "eval":
            low, high = values["pass_at_1_low"], values["pass_at_1_high"]
            self.accuracy = f"{values['pass_at_1']:.3f} [{low:.3f}, {high:.3f}] at step {step}"


def clock(seconds: float) -> str:
    """For example `2m10s`, `3h05m`."""
    minutes, seconds = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"


def panel_lines(state: PanelState, now: float, width: int, height: int) -> list[Text]:
    """The panel as lines of at most `width` cells; a window too low for all of them gets the first ones."""
    width = min(width, MAX_WIDTH)
    is_training = state.num_steps > 0 or state.step > 0  # an evaluation alone, or a warm start, has no steps
    lines = [_steps_line(state, width)] if is_training else []
    lines.append(_phase_line(state, now, width))
    left = "?" if state.ends_at is None else clock(state.ends_at - now)
    speed = "–" if state.tokens_per_second is None else f"{state.tokens_per_second:,.0f}"
    lines.append(_line(("left ", left), (" · elapsed ", clock(now - state.began)), (" · tokens/s ", speed)))
    if is_training:
        lines.append(_line(("held-out pass@1 ", state.accuracy or "–")))
    if state.alarms:
        lines.append(Text(f"alarms: {', '.join(state.alarms)}", style="yellow"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
        line.truncate(max(width - 1, 1), overflow="ellipsis")  # the last column stays free: some terminals wrap there
    return lines[: max(height - 1, 1)]


def _line(*pairs: tuple[str, str]) -> Text:
    return Text.assemble(*((text, style) for label, value in pairs for text, style in ((label, "dim"), (value, ""))))


def _steps_line(state: PanelState, width: int) -> Text:
    of_steps = f"/{state.num_steps}" if state.num_steps else ""
    of_rounds = f"/{state.num_rounds}" if state.num_rounds else ""
    text = _line(("step ", f"{state.step}{of_steps}"), (" · round ", f"{state.round_index + 1}{of_rounds} "))
    return Text.assemble(text, ("─" * max(width - 1 - text.cell_len, 0), "dim"))


def _phase_line(state: PanelState, now: float, width: int) -> Text:
    if not state.phase:
        return Text("")
    parts: list[Any] = [(state.phase, "bold"), f" {clock(now - state.phase_began)} "]
    if state.total:
        share = min(max(state.done / state.total, 0.0), 1.0)
        size = min(_BAR, width // 3)
        filled = round(share * size)
        parts += [("━" * filled, "green"), ("━" * (size - filled), "dim"), f" {state.done:g}/{state.total} "]
    return Text.assemble(*parts, (state.detail, "dim"))


class LivePanel:
    """Keeps the panel below all other output from `start` to `stop`.

    Attributes:
      cpu_seconds: CPU time the panel's thread has taken.
    """

    def __init__(self, console: Console, state: PanelState):
        self.cpu_seconds = 0.0
        self._console, self._state = console, state
        self._live = Live(
            console=console, auto_refresh=False, transient=True, get_renderable=self._picture,
            vertical_overflow="crop",
        )  # fmt: skip
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, name="panel", daemon=True)

    @staticmethod
    def suits(console: Console) -> bool:
        """Whether the console is a terminal that can redraw lines."""
        return console.is_terminal and not console.is_dumb_terminal and not console.quiet

    def start(self) -> None:
        """Hides the cursor and begins to draw; the end of the process stops it at the latest."""
        self._live.start(refresh=True)
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """Takes the panel away and shows the cursor; again does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        atexit.unregister(self.stop)
        self._thread.join(timeout=5.0)  # a terminal that takes no output (Ctrl-S) must not keep the run from ending
        self._live.stop()

    def _picture(self) -> Group:
        size = self._console.size
        return Group(*panel_lines(self._state, time.monotonic(), size.width, size.height))

    def _draw(self) -> None:
        spent, drawn_at, cpu_at = 0.0, time.monotonic(), time.process_time()
        while not self._over.wait(MIN_INTERVAL_S):
            is_paid = time.process_time() - cpu_at >= spent / CPU_SHARE
            if not is_paid and time.monotonic() - drawn_at < MAX_INTERVAL_S:
                continue
            begin = time.thread_time()
            try:
                self._live.refresh()
            except (OSError, ValueError):  # the terminal is gone; the run goes on without it
                return
            spent = time.thread_time() - begin
            self.cpu_seconds += spent
            drawn_at, cpu_at = time.monotonic(), time.process_time()
