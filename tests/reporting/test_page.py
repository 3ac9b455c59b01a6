"""The report on disk: one file that needs nothing else, whatever runs are called or say."""

import html.parser
import json
import re

import pytest

from experiments.files import embedded
from experiments.report import main
from experiments.reporting.page import page_data
from experiments.reporting.runs import load_runs
from tests.reporting.rows import evaluation, filtering, train, two_rounds, write_run

HOSTILE = '<script>alert(1)</script> & "x" $\\frac{}$ ]]> <!--'


class Elements(html.parser.HTMLParser):
    """Counts elements, and gathers addresses and the text outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.counts, self.addresses, self.text, self._inside = {}, [], "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self._inside = tag
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


def report(tmp_path, *folders):
    assert main([*map(str, folders), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    return (tmp_path / "out" / "report.html").read_text("utf-8")


def test_a_page_of_two_runs_holds_everything(tmp_path, recorded, capsys):
    text = report(tmp_path, *recorded)
    found = Elements(text)
    assert all(address.startswith("data:image/png;base64,") for address in found.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    for words in ("deepsearch", "grpo", "Where the time went", "entropy_floor", "Settings in which the runs differ",
                  "method", '"grpo"', "jax", "As Tables 3 and 6"):  # fmt: skip
        assert words in found.text, words
    assert found.counts["script"] == 2
    out = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in out] == ["report.html", "report.png"]


def test_one_run_is_reported_beside_its_metrics(tmp_path):
    folder = write_run(tmp_path / "run", two_rounds())
    assert main([str(folder)]) == 0
    assert (folder / "report.html").exists()
    assert "Settings that are not the default" in (folder / "report.html").read_text()


def test_what_runs_are_called_and_say_stays_text(tmp_path):
    config = {"method": HOSTILE, "task": {"name": HOSTILE}, HOSTILE: {"x": HOSTILE}}
    rows = [
        filtering(0), evaluation(0, 0.5), train(1, alarms=[HOSTILE], round=[HOSTILE], reward=HOSTILE, entropy=1.0),
        train(2, reward=[1], entropy=None, machine={f"seconds_{HOSTILE}": 1.0, "seconds_x": "y"}),
        evaluation(2, 0.5, **{"pass_at_<k>": 1.0, "pass_at_07": 0.5, "num_correct": HOSTILE}),
    ]  # fmt: skip
    names = ["<b>$a_1^{", "_b\u202e\n"]
    folders = [
        write_run(tmp_path / name, rows, config=config, versions={HOSTILE: HOSTILE}, tail=HOSTILE) for name in names
    ]
    text = report(tmp_path, *folders)
    found = Elements(text)
    assert found.counts["script"] == 2
    assert "b" not in found.counts
    assert found.text.count(HOSTILE) >= 6
    assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)&lt;/script&gt;|\\u003cscript\\u003ealert\(1\)", "", text)
    assert "\u202e" not in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [run["name"] for run in data["runs"]] == [
        "<b>$a_1^{",
        r"_b\u202e\n",
    ]


def test_embedded_data_cannot_end_its_element():
    value = {"</script>": "<!--<script>&amp;\u2028"}
    text = embedded(value)
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def test_a_run_of_one_row_has_a_report(tmp_path):
    assert "Held-out" in report(tmp_path, write_run(tmp_path / "run", [evaluation(0, 0.0)]))


def test_a_run_without_evaluations_and_searches_has_a_report(tmp_path):
    folder = write_run(tmp_path / "run", [train(1, loss=0.5)], config={})
    text = report(tmp_path, folder)
    assert page_data(load_runs([folder]))["charts"][0]["title"] == "Loss"
    assert "No limit of" in text


def test_mistakes_get_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'nothing'} is not a folder; name the --workdir of a run\n"
    folder = write_run(tmp_path / "run", [evaluation(0, 0.5)])
    (tmp_path / "file").write_text("")
    assert main([str(folder), "--out", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_a_long_run_is_thinned(tmp_path):
    folder = write_run(tmp_path / "run", [train(step, loss=float(step % 2)) for step in range(5000)])
    (run,) = page_data(load_runs([folder]))["runs"]
    assert run["train"]["mean_over"] == 3
    assert len(run["train"]["x"]["step"]) == len(run["train"]["y"]["loss"]) == 1667


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_command_explains_itself(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "WORKDIR" in "".join(capsys.readouterr())
