"""The benchmark: what it measures, compares and refuses, and the page that it draws; nothing rests on fine times."""

import functools
import json
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest
import torch
from support.commands import run_command

from regplug.commands.bench.measure import _difference
from regplug.commands.bench.page import page, write_page
from regplug.commands.bench.report import MODES, PASSES, PLACES, Plan, Report, Row, Side, Spread
from regplug.commands.bench.timing import spread_of

SIZES = ["--num-registers", "4", "--hidden-dim", "24", "--batch", "3", "--tokens", "9"]
FAST = ["--rounds", "1"]
EAGER = ["--mode", "eager", *FAST]
UPSTREAM = "nvsubquadratic.modules.film:RegisterPooling"

THEIRS = """
import torch
from torch import nn


class Pooling(nn.Module):
    factor = 1.0

    def __init__(self, num_registers, hidden_dim=None):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_registers))

    def forward(self, registers):
        return self.factor * torch.einsum("r,brc->bc", self.logits.softmax(0), registers)


class OffByAPercent(Pooling):
    factor = 1.01


class IgnoresItsWeights(Pooling):
    def forward(self, registers):
        return registers.mean(1) + 0 * self.logits.sum()


class NotFinite(Pooling):
    factor = float("nan")


class Other(Pooling):
    def __init__(self, num_registers, hidden_dim):
        super().__init__(num_registers)
        self.more = nn.Parameter(torch.zeros(1))


class Wider(Pooling):
    def forward(self, registers):
        return super().forward(registers).repeat(1, 2)


class Slow(Pooling):
    def forward(self, registers):
        for _ in range(50):
            output = super().forward(registers)
        return output


class NotScriptable(Pooling):
    def forward(self, registers, **keywords):
        return super().forward(registers)


class Greedy(Pooling):
    def __init__(self, num_registers, temperature):
        super().__init__(num_registers)


class Joined(nn.Module):
    def forward(self, registers: torch.Tensor, vectors: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([registers.mean(1), vectors["state"]], 1)


class JoinedInTheOtherOrder(nn.Module):
    def forward(self, registers: torch.Tensor, vectors: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([vectors["state"], registers.mean(1)], 1)


class ForFive(Pooling):
    def __init__(self, hidden_dim):
        super().__init__(5)


class NoModule:
    def __init__(self, num_registers):
        pass
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run ``regplug bench`` in the folder of ``theirs.py``."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return functools.partial(run_command, "bench")


@pytest.fixture
def measure(run):
    def measured(*arguments):
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return measured


def report(rows, against="theirs:Pooling", strategy="regplug:pool"):
    sizes = {"num_registers": [4], "cond_dim": [24], "hidden_dim": 24}
    machine = {"cpu": "a <b> & c", "cuda": None, "torch": "2.13"}
    return Report(strategy, {"compressed_dim": 6}, against, sizes, Plan([1]), machine, 1e9, [], rows)


def row(ratio, mode="eager", work="forward", place="slice", batch=1, failed=None):
    other = Side(failed=failed) if failed else Side(Spread(2.0, 1.0, 3.0))
    spread = None if ratio is None else Spread(ratio, ratio / 1.1, ratio * 1.1)
    return Row(mode, work, place, 4, batch, Side(Spread(1.0, 0.9, 1.1)), other, spread, 3, 0.0)


class OutsideFinder(HTMLParser):
    """Collects scripts, and every address that is not inside the page."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        if tag in {"script", "link", "iframe", "object", "embed", "img", "base"}:
            self.found.append(tag)
        for name, value in attributes:
            if name in {"src", "href", "xlink:href", "srcset", "action", "data"} or name.startswith("on"):
                self.found.append(f"{name}={value}")
            if "url(" in (value or ""):
                self.found.append(value)

    def handle_data(self, data):
        self.found += re.findall(r"url\(|@import|https?:|//\w+", data)


def outside(text):
    finder = OutsideFinder()
    finder.feed(text)
    return finder.found


# ---- measuring


def test_the_table_has_a_row_for_each_combination(run):
    code, out, err = run("pool", "--against", UPSTREAM, *SIZES, "--num-registers", 2, "--batch", 1, *EAGER)
    assert (code, err) == (0, "")
    title, heads, *lines = out.splitlines()
    assert title.startswith(f"regplug:pool against {UPSTREAM}: D=24, float32, slices of N=9 tokens; 1 thread of ")
    assert heads.split()[:5] == ["mode", "work", "registers", "R", "B"]
    found = {tuple(line.split()[:5]) for line in lines}
    assert found == {("eager", work, place, r, b) for work in PASSES for place in PLACES for r in "42" for b in "31"}
    assert len(lines) == len(found)


@pytest.mark.compiler
def test_every_mode_measures_every_work_and_finds_equal_outputs(measure):
    found = measure("compress-concat", "-O", "compressed_dim=6", *SIZES, *FAST, "--against",
                    "nvsubquadratic.modules.film:RegisterCompressConcat")  # fmt: skip
    assert found["schema"] == "regplug.bench/1"
    assert {"strategy", "options", "against", "sizes", "plan", "machine", "copies", "gemm_flops_per_second"} < set(
        found
    )
    assert found["sizes"] == {"num_registers": [4], "cond_dim": [24], "hidden_dim": 24}
    assert {"cpu", "torch", "cuda", "instruction_set"} <= set(found["machine"])
    assert {(r["mode"], r["work"], r["registers"]) for r in found["rows"]} == {
        (mode, work, place) for mode in MODES for work in PASSES for place in PLACES
    }
    for one in found["rows"]:
        assert one["ratio"]["low"] <= one["ratio"]["median"] <= one["ratio"]["high"]
        assert one["difference"] < 1e-6
        assert one["ours"]["microseconds"]["median"] > 0
        for share in ("bandwidth_share", "gemm_share"):
            known = [one[side][share] is not None for side in ("ours", "other")]
            assert known == [one["work"] != "forward+backward"] * 2


@pytest.mark.parametrize(("other", "is_equal"), [("Joined", True), ("JoinedInTheOtherOrder", False)])
def test_a_join_is_measured_with_its_vectors_as_inputs(measure, other, is_equal):
    parts = json.dumps([{"name": "tokens", "strategy": "mean"}, {"name": "state", "width": 24}])
    modes = ["--mode", "eager", "--mode", "torchscript"]
    rows = measure("join", "-O", f"parts={parts}", "--against", f"theirs:{other}", *SIZES, *modes, *FAST)["rows"]
    assert len(rows) == 2 * len(PASSES) * len(PLACES)
    assert all((one["difference"] < 1e-6) == is_equal for one in rows)


def test_alone_the_other_modes_are_compared_with_eager(measure):
    rows = measure("pool", *SIZES, "--mode", "eager", "--mode", "torchscript", *FAST)["rows"]
    for one in rows:
        assert (one["other"] is None) == (one["ratio"] is None) == (one["mode"] == "eager")
    assert {one["difference"] for one in rows} == {None, 0.0}


def test_a_slow_other_is_slow(measure):
    rows = measure("pool", "--against", "theirs:Slow", *SIZES, "--mode", "eager", "--rounds", 3)["rows"]
    assert all(one["ratio"]["low"] > 2 for one in rows)


@pytest.mark.parametrize(
    ("other", "least", "most"), [("Pooling", 0, 1e-6), ("OffByAPercent", 0.009, 0.011), ("IgnoresItsWeights", 1e-3, 2)]
)
def test_the_difference_shows_an_other_that_answers_something_else(measure, other, least, most):
    rows = measure("pool", "--against", f"theirs:{other}", *SIZES, *EAGER)["rows"]
    assert all(least <= one["difference"] <= most for one in rows)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("Other", "not compared: other weights"),
        ("Wider", "not compared: [3, 24] and [3, 48]"),
        ("NotFinite", "not finite"),
    ],
)
def test_what_cannot_be_compared_says_why(measure, other, why):
    rows = measure("pool", "--against", f"theirs:{other}", *SIZES, *EAGER)["rows"]
    assert {(one["difference"], one["difference_note"]) for one in rows} == {(None, why)}


def test_an_other_that_fails_in_one_mode_leaves_the_rest(run):
    code, out, _ = run("pool", "--against", "theirs:NotScriptable", *SIZES, *FAST, "--mode", "torchscript", *EAGER)
    assert code == 0
    lines = out.splitlines()
    assert sum(line.startswith("torchscript") and " failed " in line for line in lines) == 6
    assert not any(line.startswith("eager") and "failed" in line for line in lines)
    assert lines[-1].startswith("failed: torchscript, forward+backward, other: NotSupportedError: ")


def test_an_output_that_is_a_view_has_no_share_of_a_copy(measure):
    rows = measure("concat", *SIZES, *EAGER)["rows"]
    assert {one["ours"]["bandwidth_share"] for one in rows} == {None}


def test_the_threads_of_torch_are_as_before(run):
    before = torch.get_num_threads()
    assert run("mean", *SIZES, *EAGER, "--threads", before + 1, "--dtype", "bfloat16")[0] == 0
    assert torch.get_num_threads() == before


def test_a_spread_is_a_median_between_quartiles():
    assert spread_of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert spread_of([7.0]) == Spread(7.0, 7.0, 7.0)


# ---- refusing


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--num-registers", "0"], "num_registers: expected a positive integer, got 0"),
        (["--num-registers", "-4"], "num_registers: expected a positive integer, got -4"),
        (["--hidden-dim", "0"], "hidden_dim: expected a positive integer, got 0"),
        (["--batch", "0"], "--batch"),
        (["--batch", "-1"], "--batch"),
        (["--tokens", "4"], "tokens: expected at least R + 1 = 5, got 4."),
        (["--mode", "onnx"], "--mode"),
        (["--threads", "0"], "--threads"),
        (["--rounds", "0"], "--rounds"),
        (["--dtype", "int8"], "--dtype"),
        (["-O", "compressed_dim=NaN"], "option 'compressed_dim'"),
        (["-O", "num_registers=4"], "option 'num_registers'"),
        (["--batch", "1000000000000000"], "sizes: expected registers that fit into memory"),
        (["--html", "nowhere/page.html"], "--html: expected a folder that can be written into, got 'nowhere'"),
        (["--html", "theirs.py/page.html"], "--html: expected a folder that can be written into, got 'theirs.py'"),
        (["--html", "."], "--html"),
        (["--against", "theirs"], "--against"),
        (["--against", "no_such_module:Class"], "--against"),
        (["--against", "theirs:Absent"], "--against"),
        (["--against", "theirs:Greedy"], "--against theirs:Greedy: expected option temperature"),
        (["--against", "theirs:ForFive"], "--against theirs:ForFive: expected to read registers [2, 4, 24]"),
        (["--against", "theirs:NoModule"], "--against theirs:NoModule: expected an nn.Module, got NoModule"),
        (["--against", "theirs:torch"], "--against: expected a callable at 'theirs:torch', got module."),
    ],
)
def test_what_cannot_be_measured_is_refused_before_measuring(run, wrong, message):
    strategy = ["compress-concat"] if "compressed_dim" in " ".join(wrong) else ["pool"]
    code, out, err = run(*strategy, *SIZES, *EAGER, *wrong)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused(run):
    code, _, err = run("pool", *SIZES, *EAGER, "--device", "cuda")
    assert (code, "device 'cuda': expected a GPU that torch can use, got none" in err) == (2, True)


# ---- with a backbone

BACKBONE = [
    "--backbone",
    "timm:vit_small_patch14_reg4_dinov2",
    "-M",
    "img_size=28",
    "-M",
    "depth=1",
    "--batch",
    "2",
]


def test_with_a_backbone_it_prints_the_share_of_the_conditioning_in_the_whole(run):
    film = ["--film", "kernel_hidden_dim=8", "--film", "num_film_layers=2"]
    code, out, _ = run("mean", *BACKBONE, *film, "--rounds", "5", "--json")
    said = json.loads(out)
    assert (code, said["schema"], said["cond_dim"]) == (0, "regplug.bench-backbone/1", 384)
    [row] = said["rows"]
    assert row["batch"] == 2
    assert row["share"] == row["conditioning"]["median"] / row["whole"]["median"]
    assert 0 < row["share"] < 0.5
    code, out, _ = run("mean", *BACKBONE, "--rounds", "5")
    title, heads, cells = out.splitlines()
    assert "mean with timm:vit_small_patch14_reg4_dinov2, inputs [B, 3, 28, 28]" in title
    assert heads.split() == ["B", "whole", "readout", "share"]
    assert (cells.split()[0], cells[-1]) == ("2", "%")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["pool", *BACKBONE, "--hidden-dim", "4"], "--backbone: expected without --hidden-dim, got both."),
        (["pool", *BACKBONE, "--mode", "eager"], "--backbone: expected without --mode, got both."),
        (["pool", *SIZES, *EAGER, "-M", "depth=1"], "--num-registers: expected without --model-option, got both."),
        (
            ["pool", "--batch", "1"],
            "sizes: expected --num-registers R and --hidden-dim D, or --backbone NAME, got less.",
        ),
        (["pool", "--backbone", "timm:vit_nothing", "--batch", "1"], "model 'vit_nothing': not known to timm"),
        (["pool", "--backbone", "timm:naflexvit_base_patch16_gap", "-M", "depth=1", "--batch", "1"], "the one size"),
    ],
)
def test_what_cannot_be_measured_with_a_backbone_is_refused(run, wrong, message):
    code, out, err = run(*wrong)
    assert (code, out) == (2, "")
    assert message in err


# ---- the page


def test_the_page_is_self_contained_and_shows_every_ratio(run, tmp_path):
    code, out, _ = run("pool", "--against", UPSTREAM, *SIZES, "--batch", 1, *EAGER, "--html", "page.html")
    assert code == 0
    text = (tmp_path / "page.html").read_text()
    assert outside(text) == []
    assert len(text) < 300_000
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    pictures = list(root.iter("svg"))
    assert len(pictures) == len(PASSES) * len(PLACES)
    for picture in pictures:
        assert picture.find("title").text
        assert picture.find("desc").text
        assert len(picture.findall("rect")) == 2
    printed = [re.split(r"\s{2,}", line) for line in out.splitlines()[2:]]
    table = [["".join(cell.itertext()) for cell in line] for line in root.iter("tr")][1:]
    assert table == printed
    drawn = {one.text for picture in pictures for one in picture.iter("text")}
    assert {cells[5] for cells in printed} <= drawn
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_search_for_outside_addresses_finds_them():
    assert outside('<script>1</script><a href="x">a</a><p style="background:url(x)">') == ["script", "href=x",
                                                                                      "background:url(x)"]  # fmt: skip
    assert outside("<style>@import 'x'; a { b: url(x) }</style>") == ["@import", "url("]
    assert outside("<p>https://example.org</p>") == ["https:", "//example"]


def test_bars_start_at_the_line_and_go_the_right_way():
    text = page(report([row(2.0), row(0.5, batch=64), row(1.0, batch=512)]))
    [picture] = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>")).iter("svg")
    [one] = [float(line.get("x1")) for line in picture.iter("line") if line.get("class") == "o"]
    fast, slow, same = picture.findall("rect")
    assert (float(fast.get("x")), fast.get("class")) == (one, "f")
    assert (pytest.approx(float(slow.get("x")) + float(slow.get("width"))), slow.get("class")) == (one, "s")
    assert float(fast.get("width")) == pytest.approx(float(slow.get("width")), abs=0.2)  # the scale is logarithmic
    assert float(same.get("width")) == 0


@pytest.mark.parametrize("ratios", [[1.0], [1e-6, 1e6], [1e6], [3e-9], [0.97, 1.03], [1.9, 2.1, 64.1]])
def test_nothing_leaves_the_picture_and_numbers_of_the_scale_have_room(ratios):
    text = page(report([row(ratio, batch=65536) for ratio in ratios]))
    [picture] = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>")).iter("svg")
    _, _, width, height = map(float, picture.get("viewBox").split())
    for shape in picture.iter("rect"):
        assert float(shape.get("x")) >= 85  # right of the label
        assert float(shape.get("x")) + float(shape.get("width")) <= width - 30  # left of the value
        assert float(shape.get("y")) + float(shape.get("height")) <= height
    places = [float(line.get("x1")) for line in picture.iter("line")]
    assert 1 <= len(places) <= 6
    assert all(right - left >= 25 for left, right in pairwise(places))


def test_what_failed_is_said_on_the_page_and_names_cannot_break_it():
    rows = [row(None, mode="torchscript", failed='TypeError: <b> & "c"'), row(2.0), row(None, batch=2, failed="x")]
    text = page(report(rows, against='"><script>alert(1)</script>'))
    assert outside(text) == []
    root = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    assert [one.text for one in root.iter("li")] == [
        'failed: torchscript, forward, other: TypeError: <b> & "c"',
        "failed: eager, forward, other: x",
    ]
    assert len(list(root.iter("svg"))) == 1  # no picture of a mode without a ratio


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    place = tmp_path / "page.html"
    place.write_text("old")
    broken = report([row(2.0)], strategy="\ud800")  # no UTF-8 for this
    with pytest.raises(UnicodeEncodeError):
        write_page(place, broken)
    assert place.read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]
    write_page(place, report([row(2.0)]))
    assert place.read_text().startswith("<!DOCTYPE html>")


def test_a_gradient_that_is_nothing_but_rounding_is_no_difference():
    large, noise = torch.full((3,), 2.0), torch.tensor([2e-7])
    same, _ = _difference([large, noise], [large, noise + 7e-7])
    wrong, _ = _difference([large, torch.tensor([0.5])], [large, torch.tensor([0.6])])
    assert same < 1e-4
    assert wrong > 0.1
