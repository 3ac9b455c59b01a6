"""Loggers beside metrics.jsonl: nothing doubled after a resume, and W&B never in the way of a run."""

import json
import struct
import sys
import threading
import time
import types

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from deepsearch_jax.runtime import wandb_logger
from deepsearch_jax.runtime.loggers import LoggerSettings
from deepsearch_jax.runtime.metrics import MetricsWriter, SilentMetrics

WANDB = LoggerSettings(tensorboard=False, wandb=True)


def tensorboard_points(folder):
    """{tag: [(step, value)]} as TensorBoard shows them: a start purges the events from its step on."""
    points = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (size,) = struct.unpack_from("<Q", data, place)
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += 12 + size + 4
            if event.session_log.status == SessionLog.START:
                points = {tag: [p for p in found if p[0] < event.step] for tag, found in points.items()}
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, round(value.simple_value, 6)))
    return points


def wait_for_another_second():
    """Event files are named after the second they were begun in."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.02)


def test_tensorboard_shows_every_row_once_after_a_resume(tmp_path):
    first = MetricsWriter(tmp_path, 0)
    first.write("eval", 0, {"pass_at_1": 0.1}, {"seconds_evaluate": 1.0})
    first.write("train", 1, {"loss": 0.5}, {})
    first.write("train", 2, {"loss": 0.25}, {})  # the checkpoint is written here, the next two rows are lost
    first.write("eval", 2, {"pass_at_1": 0.9}, {"seconds_evaluate": 1.0})
    first.write("train", 3, {"loss": 0.75}, {})
    first.close()
    wait_for_another_second()
    again = MetricsWriter(tmp_path, 3)
    again.write("eval", 2, {"pass_at_1": 0.2}, {"seconds_evaluate": 2.0})
    again.close()
    assert tensorboard_points(tmp_path / "tensorboard") == {
        "eval/pass_at_1": [(0, 0.1), (2, 0.2)],
        "eval/seconds_evaluate": [(0, 1.0), (2, 2.0)],
        "train/loss": [(1, 0.5), (2, 0.25)],
    }


def test_tensorboard_that_is_switched_on_later_gets_all_rows(tmp_path):
    first = MetricsWriter(tmp_path, 0, LoggerSettings(tensorboard=False))
    first.write("train", 1, {"loss": 0.5}, {})
    first.close()
    assert not (tmp_path / "tensorboard").exists()
    MetricsWriter(tmp_path, 1).close()
    assert tensorboard_points(tmp_path / "tensorboard") == {"train/loss": [(1, 0.5)]}


class FakeWandb(types.ModuleType):
    """Takes what W&B takes; `behave` is called before each of its actions and may raise or wait."""

    def __init__(self, behave=lambda action: None):
        super().__init__("wandb")
        self.starts, self.rows, self.finished, self._behave = [], [], 0, behave

    def Settings(self, **options):
        return options

    def init(self, **options):
        self.starts.append(options)
        self._behave(f"init {options['mode']}")
        return self

    def teardown(self):
        self._behave("teardown")

    def define_metric(self, name, step_metric):
        assert step_metric == "step"

    def log(self, values, step):
        self._behave("log")
        self.rows.append((step, values))

    def finish(self):
        self._behave("finish")
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    """Puts a fake in the place of wandb, with a key in the environment."""

    def install(module):
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return install


def write(workdir, kept, steps, notes=None, settings=WANDB):
    writer = MetricsWriter(
        workdir, kept, settings, config={"seed": 3}, note=(notes if notes is not None else []).append
    )
    for step in steps:
        writer.write("train", step, {"loss": float(step), "alarms": ["x"]}, {"cpu_seconds": 1.0})
    writer.close()


def test_wandb_gets_every_number_of_every_row(fake, tmp_path):
    wandb = fake(FakeWandb())
    write(tmp_path, 0, [1, 2])
    assert wandb.rows == [
        (0, {"train/loss": 1.0, "train/cpu_seconds": 1.0, "step": 1}),
        (1, {"train/loss": 2.0, "train/cpu_seconds": 1.0, "step": 2}),
    ]
    (start,) = wandb.starts
    assert (start["mode"], start["config"], start["project"]) == ("online", {"seed": 3}, "deepsearch_jax")
    assert (start["name"], start["resume"], start["settings"]["console"]) == (tmp_path.name, "allow", "off")
    assert wandb.finished == 1


def test_a_resumed_run_goes_on_in_its_wandb_run_without_doubled_rows(fake, tmp_path):
    wandb = fake(FakeWandb())
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, 2, [3, 4, 5])
    assert [step for step, _ in wandb.rows] == [0, 1, 2, 3, 4]
    assert wandb.rows[-1][1]["step"] == 5
    assert wandb.starts[0]["id"] == wandb.starts[1]["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"]


def test_wandb_that_is_switched_on_later_gets_the_rows_it_lacks(fake, tmp_path):
    wandb = fake(FakeWandb())
    write(tmp_path, 0, [1, 2], settings=LoggerSettings(tensorboard=False))
    write(tmp_path, 2, [3])
    assert [(step, values["train/loss"]) for step, values in wandb.rows] == [(0, 1.0), (1, 2.0), (2, 3.0)]


def test_without_a_network_wandb_writes_for_later(fake, tmp_path):
    actions = []

    def behave(action):
        actions.append(action)
        if action == "init online":
            raise ConnectionError("connection refused\nand more")

    wandb, notes = fake(FakeWandb(behave)), []
    write(tmp_path, 0, [1], notes)
    # A failed attempt holds the id until it is torn down.
    assert actions[:3] == ["init online", "teardown", "init offline"]
    assert len(wandb.rows) == 1
    (note,) = notes
    assert "W&B cannot be reached (connection refused); `wandb sync" in note


@pytest.mark.parametrize(
    ("environment", "mode", "words"),
    [
        ({"WANDB_API_KEY": ""}, "offline", "no key"),
        ({"WANDB_MODE": "offline"}, "offline", "WANDB_MODE=offline"),
        ({"WANDB_MODE": "disabled"}, None, "WANDB_MODE=disabled"),
    ],
)
def test_wandb_never_asks_for_a_key(fake, tmp_path, monkeypatch, environment, mode, words):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    wandb, notes = fake(FakeWandb()), []
    write(tmp_path, 0, [1], notes)
    assert [start["mode"] for start in wandb.starts] == ([mode] if mode else [])
    assert len(notes) == 1
    assert words in notes[0]


def test_a_key_in_netrc_counts(fake, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb = fake(FakeWandb())
    write(tmp_path, 0, [1])
    assert wandb.starts[0]["mode"] == "online"


def test_a_missing_package_is_one_note(fake, tmp_path):
    fake(None)  # an import of it fails
    notes = []
    write(tmp_path, 0, [1, 2], notes)
    (note,) = notes
    assert "pip install -e '.[wandb]'" in note


def test_a_wandb_that_fails_is_one_note_and_the_rest_is_sent_at_the_next_start(fake, tmp_path):
    calls = []

    def behave(action):
        calls.append(action)
        if calls.count("log") == 2:
            raise RuntimeError("server error 500")

    wandb, notes = fake(FakeWandb(behave)), []
    write(tmp_path, 0, [1, 2, 3], notes)
    (note,) = notes
    assert "server error 500" in note
    wandb = fake(FakeWandb())
    write(tmp_path, 3, [4])
    assert [step for step, _ in wandb.rows] == [1, 2, 3]


def test_a_wandb_that_hangs_keeps_nobody_waiting(fake, tmp_path, monkeypatch):
    over, ended = threading.Event(), []

    def behave(action):
        if action.startswith("init"):
            over.wait(60)
            ended.append(action)

    fake(FakeWandb(behave))
    monkeypatch.setattr(wandb_logger, "_FINISH_S", 0.2)
    monkeypatch.setattr(wandb_logger, "_WAITING_ROWS", 5)
    notes = []
    write(tmp_path, 0, range(50), notes)
    assert not ended  # it hangs while all rows are written and the loggers closed
    over.set()
    assert ["too far behind" in notes[0], "has not taken all rows" in notes[1]] == [True, True]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 50


def test_other_processes_log_nothing(fake, tmp_path):
    wandb = fake(FakeWandb())
    silent = SilentMetrics(tmp_path, 0, WANDB, config={}, note=print)
    silent.write("train", 1, {"loss": 1.0}, {})
    silent.close()
    assert wandb.starts == []
    assert list(tmp_path.iterdir()) == []


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="wandb_mode='online' is not known"):
        LoggerSettings(wandb_mode="online")
    with pytest.raises(ValueError, match="wandb_project is empty"):
        LoggerSettings(wandb=True, wandb_project="")
