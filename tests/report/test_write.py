import dataclasses
import errno
import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deploykit import artifact
from deploykit.errors import ArtifactError, OutputExists, ResourceError
from deploykit.evidence import Metric
from deploykit.report import ReportSettings, report
from deploykit.report import html as html_module
from tests.report.evidence import latencies, latency, model, seal, validation

NASTY = "<script>alert(1)</script>"


@pytest.fixture
def folders(tmp_path):
    """A head that was measured in turn with the baseline, and both validated."""
    head, base = model("head"), model("base")
    seal(tmp_path / "head" / "latency", *latency(head, latencies(1, seed=1), latencies(6), reference=base))
    seal(tmp_path / "head" / "validation", *validation(head, 0.905))
    seal(tmp_path / "base" / "validation", *validation(base, 0.91))
    return tmp_path


def write(folders, **changes):
    return report(folders / "head", folders / "base", folders / "report", ReportSettings(), **changes)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def read(folders, name):
    return (folders / "report" / name).read_text(encoding="utf-8")


def test_a_good_head_passes_every_gate(folders):
    made = write(folders)
    assert made.verdict == "pass"
    judged = [gate.name for gate in made.gates]
    assert judged == ["single p50", "single p95", "accuracy on reviews (test)", "size", "proof"]
    assert {metric["name"] for metric in made.metrics} == {"p50_ms", "accuracy", "size_bytes"}
    assert names(folders / "report") == ["report.html", "report.json", "report.md"]


@pytest.mark.parametrize("piece", ["head/latency", "head/validation", "base/validation"])
def test_any_missing_evidence_makes_the_report_inconclusive(folders, piece):
    shutil.rmtree(folders / piece)
    assert write(folders).verdict == "inconclusive"


def test_a_regression_outweighs_what_cannot_be_told(folders):
    shutil.rmtree(folders / "head" / "latency")
    shutil.rmtree(folders / "head" / "validation")
    seal(folders / "head" / "validation", *validation(model("head"), 0.8))
    assert write(folders).verdict == "fail"


def test_changed_evidence_is_an_error_and_leaves_nothing(folders):
    file = folders / "head" / "validation" / "evidence.json"
    file.write_text(file.read_text().replace('"candidate": 0.905', '"candidate": 0.999'))
    with pytest.raises(ArtifactError, match="changed"):
        write(folders)
    assert names(folders) == ["base", "head"]


def test_an_existing_output_is_refused_and_replaced_only_by_force(folders):
    write(folders)
    (folders / "report" / "note").write_text("mine")
    with pytest.raises(OutputExists):
        write(folders)
    assert read(folders, "note") == "mine"
    write(folders, force=True)
    assert not (folders / "report" / "note").exists()
    assert names(folders) == ["base", "head", "report"]


def test_a_failure_while_writing_leaves_what_stood_there(folders, monkeypatch):
    write(folders)
    before = read(folders, "report.html")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("deploykit.report.write.page", full)
    with pytest.raises(ResourceError):
        write(folders, force=True)
    assert read(folders, "report.html") == before
    assert names(folders) == ["base", "head", "report"]


def test_the_same_evidence_gives_the_same_bytes(folders):
    write(folders)
    first = {file.name: file.read_bytes() for file in (folders / "report").iterdir()}
    write(folders, force=True)
    assert {file.name: file.read_bytes() for file in (folders / "report").iterdir()} == first


def test_the_record_is_strict_json_with_the_documented_fields(folders):
    shutil.rmtree(folders / "base" / "validation")
    (folders / "base" / "empty").mkdir()
    write(folders)

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads(read(folders, "report.json"), parse_constant=refuse)
    assert list(record) == [
        "format", "verdict", "gates", "metrics", "warnings", "settings", "head", "baseline", "environments", "latency",
        "accuracy", "checks", "waterfall", "dropped", "steps", "search",
    ]  # fmt: skip
    assert record["format"] == 1
    for gate in record["gates"]:
        assert list(gate) == ["name", "value", "budget", "better", "verdict", "reason", "low", "high"]
        assert (gate["value"] is None) == (gate["verdict"] == "inconclusive")


def test_the_page_and_the_markdown_are_drawn_from_the_record_alone(folders):
    write(folders)
    record = json.loads(read(folders, "report.json"))
    from deploykit.report.markdown import markdown

    assert html_module.page(record) == read(folders, "report.html")
    assert markdown(record) == read(folders, "report.md")


class Links(HTMLParser):
    """Every tag, and every address that a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.tags, self.addresses = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]


def test_the_page_stands_alone(folders):
    write(folders)
    page, links = read(folders, "report.html"), Links()
    links.feed(page)
    assert links.addresses == []
    assert not links.tags & {"script", "link", "iframe", "img", "object", "embed", "image"}
    assert "url(" not in page
    assert "@import" not in page
    assert {"svg", "table", "h1"} <= links.tags


def test_no_text_of_the_evidence_becomes_markup(tmp_path):
    head, base = model(f"head{NASTY}"), model("base")
    found, arrays = validation(head, 0.9, warnings=(NASTY,), data=model(NASTY), split=NASTY)
    accuracy = found.details["accuracy"]
    accuracy["metric"] = NASTY
    accuracy["flips"] = [{"row": 1, "text": NASTY, "label": NASTY, "reference": NASTY, "candidate": NASTY}]
    accuracy["classes"][0]["label"] = NASTY
    accuracy["slices"][0] |= {"field": NASTY, "value": NASTY}
    found.details["parity"] = {NASTY: NASTY, "worst": [{"text": NASTY, NASTY: 1}]}
    found.details["waterfall"][0] |= {"stage": NASTY, "metric": NASTY, "settings": {NASTY: NASTY}}
    found.environment.update({NASTY: NASTY})
    seal(tmp_path / "head" / "validation", found, arrays)
    raw = latency(head, latencies(1), latencies(1), reference=base)
    raw[0].details["scenarios"][NASTY] = raw[0].details["scenarios"].pop("single")
    seal(tmp_path / "head" / "latency", raw[0], {})
    seal(tmp_path / "base" / "validation", *validation(base, 0.9))
    write(tmp_path)
    page, links = read(tmp_path, "report.html"), Links()
    links.feed(page)
    assert "script" not in links.tags
    assert page.count("&lt;script&gt;") > 20
    assert "<script" not in page
    assert "<script" not in read(tmp_path, "report.md")


def test_a_report_loads_no_model_library(folders):
    code = (
        "import sys; from pathlib import Path; from deploykit.report import report, ReportSettings; "
        f"f = Path({str(folders)!r}); print(report(f / 'head', f / 'base', f / 'out', ReportSettings()).verdict); "
        "print([n for n in ('torch', 'transformers', 'onnx', 'onnxruntime', 'sklearn') if n in sys.modules]); "
        "stages = ('deploykit.stage', 'deploykit.check.validate', 'deploykit.check.bench'); "
        "print([n for n in stages if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["pass", "[]", "[]"]


def test_no_stage_imports_the_report():
    root = Path(artifact.__file__).parent
    allowed = {"commands.py", "recipe.py", "pipeline.py"}
    importers = {
        file.relative_to(root).as_posix()
        for file in root.rglob("*.py")
        if "deploykit.report" in file.read_text(encoding="utf-8")
    }
    outside = {name for name in importers if not name.startswith(("report/", "cli/", "demo/"))}
    assert outside <= allowed


def test_a_size_that_is_unknown_is_not_drawn(folders):
    shutil.rmtree(folders / "base" / "validation")
    seal(folders / "base" / "validation", *validation(model("base"), 0.91, metrics=(Metric("accuracy", 0.91),)))
    made = write(folders)
    assert made.verdict == "inconclusive"
    assert [gate.verdict for gate in made.gates if gate.name == "size"] == ["inconclusive"]


@pytest.mark.parametrize("share", [0.3, 0.7, 1.0])
def test_a_head_that_drops_requests_is_reported_in_words(tmp_path, share):
    head = latencies(1, n=400)
    head[: round(share * 400)] = math.inf
    seal(tmp_path / "head" / "latency", *latency(model("head"), head))
    seal(tmp_path / "base" / "latency", *latency(model("base"), latencies(1, n=400)))
    assert write(tmp_path).verdict == "fail"
    assert "never answered" in read(tmp_path, "report.md")
    for name in names(tmp_path / "report"):
        assert "inf " not in read(tmp_path, name)
        assert "nan" not in read(tmp_path, name)


def test_a_run_folder_is_compared_with_the_original_inside_it(tmp_path):
    head, base = model("model"), dataclasses.replace(model("original model"), name="model")
    seal(tmp_path / "run" / "validation", *validation(head, 0.905))
    seal(tmp_path / "run" / "bench", *latency(head, latencies(1, seed=1), latencies(6), reference=base))
    seal(tmp_path / "run" / "original" / "validation", *validation(base, 0.91))
    run = tmp_path / "run"
    made = report(run, run / "original", run / "report", ReportSettings())
    assert made.verdict == "pass"
    assert json.loads((run / "report" / "report.json").read_text())["baseline"]["name"] == "original"
