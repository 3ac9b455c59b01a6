"""The viewer in a real browser: what is drawn, what keys and pointer do, how long it takes, and what it never does."""

import dataclasses
import struct

import numpy as np
import pytest

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.runtime.responses import Group, Response
from deepsearch_jax.runtime.tree_records import Lesson, Words, record_of
from deepsearch_jax.types import Outcome
from tests.browser import browser
from tests.grown import WordTokenizer, grown_record
from tests.viewer_pictures import big_record, open_page, picture, write_page

pytestmark = pytest.mark.browser

HOSTILE = "</script><img src=x onerror=\"window.wasHit=1\"><b onmouseover='window.wasHit=1'>"
SMALL = {"segment_length": 6, "max_depth": 5, "width": 2, "num_trajectories": 6, "num_nodes": 31}
LONG = 16_384


def long_record():
    """Two direct samples of 16,384 tokens each, as a baseline has them."""
    tokenizer = WordTokenizer([" so", " x", " =", " 1", ".\n"])
    draw = np.random.default_rng(0)
    responses = []
    for outcome, reward in ((Outcome.INCORRECT, -1.0), (Outcome.INCOMPLETE, -1.0)):
        tokens = draw.integers(1, 6, LONG).astype(np.int32)
        responses.append(
            Response(
                tokens=tokens, segment_lengths=np.array([LONG], np.int32), node_values=np.array([reward], np.float32),
                log_probs=-draw.exponential(0.3, LONG).astype(np.float32), reward=reward, outcome=outcome, text="",
                origin="direct",
            )
        )  # fmt: skip
    group = Group(Problem(2, "long", "Think for long.", "1"), [1, 2], responses)
    nothing = np.zeros(0, np.float32)
    return record_of(group, Lesson([2, 2], [nothing, nothing]), {"step": 2}, Words(tokenizer))


def hostile_record():
    tokenizer = WordTokenizer([HOSTILE, " é", "한", "b"])
    record = grown_record(**SMALL, seed=1, correct_share=0.0, tokenizer=tokenizer)
    return dataclasses.replace(
        record, facts={**record.facts, "problem": HOSTILE, "question": HOSTILE, "answer": HOSTILE}
    )


@pytest.fixture(scope="module")
def records():
    return {1: [grown_record(**SMALL, seed=3, name="small"), hostile_record()], 2: [long_record()], 10: [big_record()]}


@pytest.fixture(scope="module")
def page(records, tmp_path_factory):
    return write_page(tmp_path_factory.mktemp("run"), records)


@pytest.fixture(scope="module")
def session(page):
    with browser() as session:
        session.requests()  # what an empty first tab asked for
        yield session
        assert session.run("window.wasHit") is None
        assert session.console() == []
        # A browser's own first tab may still ask for parts of itself.
        asked = {url for url in session.requests() if not url.startswith("chrome:")}
        assert asked == {page.as_uri()}


@pytest.fixture
def view(session, page):
    """The page as it is when it has just been opened: the first tree."""
    open_page(session, page)
    return session


def node_place(view, node):
    """Where a node is in the window."""
    return view.run(
        "(() => { const box = viewer.drawing.canvas.getBoundingClientRect(); "
        "const [x, y] = viewer.drawing.at(arguments[0]); return [box.left + x, box.top + y] })()".replace(
            "arguments[0]", str(node)
        )
    )


def text_of(view, selector):
    return view.run(f"document.querySelector({selector!r})?.textContent")


def open_step(view, step, place=0):
    view.run(f"viewer.open(viewer.entries.find((e) => e.step === {step} && e.place === {place}))")
    view.wait(f"viewer.entry.step === {step} && viewer.entry.place === {place} && !viewer.isDue")


def test_two_thousand_nodes_are_there_within_two_seconds(session, tmp_path, records):
    """A page of this tree alone, from the navigation to the first picture."""
    page = write_page(tmp_path / "big", {10: records[10]})
    times = []
    for _ in range(6):  # the first time everything is cold, and the machine may be busy
        open_page(session, page)
        times.append(session.run("[viewer.firstDrawn, performance.getEntriesByType('navigation')[0].loadEventEnd]"))
        if times[-1][0] <= 2000:
            break
    first, loaded = min(times)
    assert session.run("viewer.drawing.drawn") == session.run("viewer.tree.size") == 2001
    frame = session.run(
        "(() => { const begin = performance.now(); for (let i = 0; i < 10; i++) viewer.drawing.draw(0, -1, false); "
        "return (performance.now() - begin) / 10 })()"
    )
    size = page.stat().st_size / 2**20
    print(f"2,001 nodes, {size:.1f} MiB: drawn {first:.0f} ms after the navigation (load event {loaded:.0f} ms), "
          f"{frame:.1f} ms a picture")  # fmt: skip
    assert first <= 2000
    session.keys("t")
    picture(session, tmp_path / "tree_2000.png")
    check_picture(tmp_path / "tree_2000.png")
    session.requests()  # of another page than the others


def check_picture(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 1200
    assert height >= 700
    assert 10_000 < len(data) < 300_000


def test_the_first_tree_is_drawn_whole(view, records, tmp_path):
    record = records[1][0]
    assert view.run("viewer.drawing.drawn") == len(record.parent)
    assert view.run("viewer.kind") == "rows"
    assert f"{len(record.leaves)} trajectories correct" in text_of(view, "#about")
    assert text_of(view, "#answer") == "13"
    assert view.run("document.querySelectorAll('#trajectories tbody tr').length") == len(record.leaves)
    view.run("viewer.choose(viewer.tree.leaves[0])")
    picture(view, tmp_path / "tree.png")
    check_picture(tmp_path / "tree.png")


def test_a_click_shows_the_numbers_and_texts_of_a_node(view, records):
    record = records[1][0]
    leaf = int(record.leaves[0])
    view.pointer(*node_place(view, leaf), click=True)
    assert view.run("viewer.chosen") == leaf
    facts = dict(
        view.run(
            "[...document.querySelectorAll('#facts dl div')].map((d) => [...d.children].map((c) => c.textContent))"
        )
    )
    minus = facts["q value"].replace("−", "-")
    assert float(minus) == pytest.approx(record.value[leaf], abs=6e-4)
    assert facts["N visits"] == str(record.visit_count[leaf])
    assert float(facts["entropy, segment"].split()[0]) == pytest.approx(record.mean_nll[leaf], abs=6e-4)
    assert facts["credited"] == f"as 1. of {len(record.leaves)}"
    assert facts["trained on"] == ("no" if record.fates[0] else f"1 of {len(record.leaves)} paths")
    words = {0: "trained on", 1: "left out: garbled or repeating"}
    assert words[int(record.fates[0])] in text_of(view, "#fate")
    view.wait("!viewer.panel.isFilling")
    # The text of the segment and of the whole path, from the arrays and by hand.
    starts = np.concatenate([[0], np.cumsum(record.segment_lengths)])
    pieces = np.split(record.vocabulary_bytes, record.vocabulary_ends[:-1])

    def text(tokens):
        return b"".join(pieces[np.searchsorted(record.vocabulary, t)].tobytes() for t in tokens).decode()

    own = record.tokens[starts[leaf] : starts[leaf + 1]]
    assert text_of(view, "#segment") == text(own)
    path, node = [], leaf
    while node > 0:
        path.insert(0, node)
        node = int(record.parent[node])
    whole = [*record.prompt, *(t for n in path for t in record.tokens[starts[n] : starts[n + 1]])]
    assert text_of(view, "#path") == text(whole)
    # Tokens are coloured by their log-prob, the surest not at all.
    colours = view.run("[...document.querySelectorAll('#segment b')].map((b) => b.style.backgroundColor)")
    sure = record.log_probs[starts[leaf] : starts[leaf + 1]] > -0.048
    assert [colour == "" for colour in colours] == sure.tolist()


def test_hovering_tells_in_short(view):
    assert view.run("viewer.parts.tip.hidden")
    view.pointer(*node_place(view, 1))
    view.wait("viewer.hovered === 1")
    assert not view.run("viewer.parts.tip.hidden")
    assert text_of(view, "#tip").startswith("node 1 · q ")
    right = view.run("viewer.parts.tip.getBoundingClientRect().right")
    assert right <= 1600
    view.pointer(5, 5)
    view.wait("viewer.parts.tip.hidden")


def test_keys_go_from_node_to_node(view, records):
    record = records[1][0]
    children = np.flatnonzero(record.parent == 0)
    view.keys("right")
    assert view.run("viewer.chosen") == children[0]
    view.keys("down")
    assert view.run("viewer.chosen") == children[1]
    view.keys("down")
    assert view.run("viewer.chosen") == children[-1]
    view.keys("up", "left")
    assert view.run("viewer.chosen") == 0
    view.keys("c")
    assert view.run("viewer.chosen") == record.leaves[0]
    view.keys("c")
    assert view.run("viewer.chosen") == record.leaves[1]
    assert text_of(view, "#said").startswith(f"node {record.leaves[1]}, depth")
    view.keys("escape")
    assert view.run("viewer.chosen") == 0
    view.keys("?")
    assert view.run("viewer.parts.keys.open")
    view.keys("escape")
    assert not view.run("viewer.parts.keys.open")


def test_keys_change_the_picture(view):
    before = view.run("viewer.drawing.scale")
    view.keys("+")
    assert view.run("viewer.drawing.scale") > before
    view.keys("f")
    assert view.run("viewer.drawing.scale") == before
    view.keys("r")
    assert view.run("viewer.kind") == "rings"
    theme = view.run("document.documentElement.dataset.theme")
    ground = view.run("getComputedStyle(document.body).backgroundColor")
    view.keys("t")
    assert view.run("document.documentElement.dataset.theme") != theme
    assert view.run("getComputedStyle(document.body).backgroundColor") != ground
    view.keys("l")
    assert text_of(view, "#trained") == "Trained on"
    assert view.run("document.getElementById('trained').getAttribute('aria-pressed')") == "true"


def test_far_away_nodes_are_not_drawn(view):
    open_step(view, 10)
    assert view.run("viewer.drawing.drawn") == 2001
    for _ in range(12):
        view.keys("+")
    view.wait("!viewer.isDue")
    assert 0 < view.run("viewer.drawing.drawn") < 500  # the chosen one stays in view


def test_the_search_is_played_iteration_by_iteration(view, records):
    record = records[1][0]
    last = len(record.frame_nodes) - 1
    view.keys("home")
    assert view.run("[viewer.tree.frame, viewer.tree.numNodes]") == [0, 1]
    view.wait("!viewer.isDue")
    assert view.run("viewer.drawing.drawn") == 1
    for frame in (1, 2):
        view.keys(".")
        view.wait("!viewer.isDue")
        assert view.run("[viewer.tree.frame, viewer.drawing.drawn]") == [frame, record.frame_nodes[frame]]
    view.keys(",")
    assert view.run("viewer.tree.frame") == 1
    # The numbers of this iteration, from the start of all changes up to it.
    value = np.zeros(len(record.parent), np.float32)
    for i in range(record.change_ends[1]):
        value[record.change_nodes[i]] = record.change_values[i]
    np.testing.assert_allclose(list(view.run("Array.from(viewer.tree.now.value)")), value)
    view.run("(document.getElementById('speed').value = '60')")
    view.keys("space")
    assert text_of(view, "#play").endswith("Pause")
    view.wait(f"viewer.tree.frame === {last} && !viewer.timer")
    assert text_of(view, "#play").endswith("Play")
    assert f"iteration {last} of {last} · {len(record.parent)} nodes" in text_of(view, "#count")
    view.run("((viewer.parts.frame.value = 1), viewer.parts.frame.dispatchEvent(new Event('input')))")
    assert view.run("viewer.tree.frame") == 1
    # The frontier in the order of its scores.
    view.keys("end")
    ranks = view.run("[...viewer.tree.frontier().keys()]")
    scores = np.full(len(record.parent), np.nan, np.float32)
    scores[record.change_nodes] = record.change_scores
    frontier = np.flatnonzero(~np.isnan(scores))
    assert ranks == frontier[np.argsort(-scores[frontier], kind="stable")].tolist()


def test_problems_are_chosen_and_filtered(view):
    def shown():
        return view.run("[viewer.entry.step, viewer.entry.place]")

    view.keys("]")
    view.wait("viewer.entry.place === 1 && viewer.tree.facts.problem !== 'small'")
    view.keys("[")
    view.wait("viewer.tree.facts.problem === 'small'")
    view.keys("}")
    view.wait("viewer.tree.facts.problem === 'long'")
    assert shown() == [2, 0]
    view.keys("s")  # solved ones: the small tree and the big one
    view.wait("viewer.entry.step === 10")
    assert view.run("[...document.querySelectorAll('#step option')].map((o) => o.value)") == ["1", "10"]
    view.keys("s")
    view.wait("viewer.filter === 'unsolved' && viewer.entry.step !== 10")
    assert view.run("[...document.querySelectorAll('#step option')].map((o) => o.value)") == ["1", "2"]
    view.run("((viewer.parts.step.value = '2'), viewer.parts.step.dispatchEvent(new Event('change')))")
    view.wait("viewer.tree.facts.problem === 'long'")


def test_hostile_text_is_text(view):
    open_step(view, 1, 1)
    assert text_of(view, "#answer") == HOSTILE
    assert text_of(view, "#question") == HOSTILE
    for node in range(1, 6):
        view.run(f"viewer.choose({node})")
        view.pointer(*node_place(view, node))
        view.wait("!viewer.panel.isFilling")
    assert HOSTILE in text_of(view, "#path")
    assert view.run("document.querySelectorAll('img').length") == 0
    assert view.run("window.wasHit") is None


def test_a_path_of_many_tokens_does_not_hold_the_page_up(view):
    """Its tokens come in slices, and between two of them the page has its turn."""
    open_step(view, 2)
    view.run(
        "(() => { window.slices = []; let last = 0; new MutationObserver(() => { "
        "const now = document.querySelectorAll('#panel b').length; slices.push(now - last); last = now })"
        ".observe(document.getElementById('panel'), { childList: true, subtree: true }) })()"
    )
    view.run("viewer.choose(1)")
    view.wait("!viewer.panel.isFilling", seconds=60)
    assert view.run("document.querySelectorAll('#path b').length") == LONG + 2
    slices = view.run("slices")
    assert sum(slices) == view.run("document.querySelectorAll('#panel b').length") > 2 * LONG
    assert max(slices) <= 2400  # 800 at a time, to the end of their line
    view.keys("down")  # and it still listens
    assert view.run("viewer.chosen") == 2
