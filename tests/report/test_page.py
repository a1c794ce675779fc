"""The page as text: whole, self-contained, and escaped whatever names there are."""

import json
import re
from html.parser import HTMLParser

from made_up import full, opened
from synthetic import stored_run

from iddpm_jax import report

VOID = {"meta", "link", "img", "input", "br"}


class Reader(HTMLParser):
    """Elements of a page, and whether each that begins also ends."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page(folder, run):
    lines = list(report.write(folder, run, False))
    return (folder / "report.html").read_text(encoding="utf-8"), lines


def test_page_has_every_section_and_its_own_data(tmp_path):
    text, lines = page(tmp_path / "run", full(tmp_path / "run"))
    assert len(lines) == 1 and lines[0].startswith("report ")
    elements = Reader(text).seen
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"samples", "bound", "curves", "importance", "scores", "config", "moment"} <= set(ids)
    targets = [a["href"][1:] for tag, a in elements if tag == "a" and a["href"][0] == "#"]
    assert {"nll-0", "nll-1", "fid-0"} <= set(targets) <= set(ids)
    files = [a["href"] for tag, a in elements if tag == "a" and a["href"][0] != "#"]
    assert len(files) == 4 and all((tmp_path / "run" / file).exists() for file in files)
    charts = {a["data-chart"] for _, a in elements if "data-chart" in a}
    data = json.loads(re.search(r'id="data">(.*?)</script>', text)[1])
    assert charts == set(data["charts"]) and len(charts) == 8
    assert data["times"] == [20, 15, 11, 6, 1, 0]
    assert "Left out" not in text


def test_nothing_is_loaded_from_anywhere(tmp_path):
    text, _ = page(tmp_path / "run", full(tmp_path / "run"))
    elements = Reader(text).seen
    for tag, attributes in elements:
        if "src" in attributes:
            assert tag == "img" and attributes["src"].startswith("data:image/png;base64,")
        if "href" in attributes:
            assert tag == "a" or attributes["href"] == "data:,"
            assert "//" not in attributes["href"]
    [policy] = [a["content"] for _, a in elements if "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", text)


def test_names_and_values_are_escaped(tmp_path):
    evil = "</script><script>alert(1)</script>&"
    folder = tmp_path / "<img src=x>&"
    run = full(folder)
    stored = json.loads((folder / "config.json").read_text())
    stored["data"]["name"] = run.config.data.name = f"folder:{evil}"
    (folder / "config.json").write_text(json.dumps(stored))
    [path] = (folder / "fid").glob("*.json")
    record = json.loads(path.read_text())
    record["reference"] = record["scores"][0]["name"] = evil
    record["scores"][0]["value"] = float("nan")
    path.write_text(json.dumps(record))
    text, _ = page(folder, run)
    reader = Reader(text)
    assert [tag for tag, _ in reader.seen].count("script") == 2
    assert "alert(1)" not in re.sub(r"&lt;/script&gt;&lt;script&gt;alert\(1\)", "", text)
    assert not any(a.get("src") == "x" for _, a in reader.seen)


def test_numbers_that_nobody_measured_are_dashes(tmp_path):
    run = full(tmp_path / "run")
    for path in (tmp_path / "run" / "nll").glob("*.json"):
        record = json.loads(path.read_text())
        # As of a few random terms, among which the first is not.
        path.write_text(json.dumps({**record, "decoder": None, "adjusted": None}))
    [path] = (tmp_path / "run" / "fid").glob("*.json")
    record = json.loads(path.read_text())
    record["scores"][0] |= {"error": None}
    record |= {"samples_count": None, "reference_count": None}  # as of bare statistics
    path.write_text(json.dumps(record))
    text, _ = page(tmp_path / "run", run)
    assert "decoder, <i>L</i><sub>0</sub></dt><dd>–</dd>" in text
    assert "adjusted for" not in text and "<td>1.500</td>" in text
    assert "None" not in text and "split of digits, – images" in text


def test_page_is_the_same_bytes_every_time(tmp_path):
    run = full(tmp_path / "run")
    assert page(tmp_path / "run", run)[0] == page(tmp_path / "run", run)[0]


def test_what_is_missing_is_said_on_the_page_and_in_the_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "draw", no_samples)
    run = opened(stored_run(tmp_path / "run").config)
    text, lines = page(tmp_path / "run", run)
    assert [line.split()[0] for line in lines] == [
        *("film", "curves", "importance", "bits/dim", "scores", "report")
    ]
    shown = " ".join(re.findall(r'<p class="missing">(.*?)</p>', text))
    for words in ("no film", "metrics.jsonl", "--mode nll", "timesteps=importance", "--mode fid"):
        assert words in shown
    assert not (tmp_path / "run" / "report.unfinished").exists()
    Reader(text)


def no_samples(workdir, run, progress):
    return report.pictures.Shown("samples", [], [], None, "", {"film": "no film"})


def test_settings_that_differ_are_marked(tmp_path):
    text, _ = page(tmp_path / "run", full(tmp_path / "run"))
    row = re.search(r"<code>diffusion.T</code>.*?</tr>", text)[0]
    assert "<td><mark>20</mark></td><td>4000</td>" in row and "paper: 4000" in row
    assert "<mark>cosine" not in text
