"""Figures on pages come from JSON files, each with its provenance; no score or verdict is typed by hand."""

import json
import re
import sys
from xml.etree import ElementTree

import pytest
from recipe_runs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import record  # noqa: E402
import render  # noqa: E402
import scores  # noqa: E402
import trade_off  # noqa: E402

RENDERED = render.rendered()


@pytest.mark.parametrize("path", RENDERED, ids=[path.relative_to(ROOT).as_posix() for path in RENDERED])
def test_pages_show_what_the_files_hold(path):
    assert path.read_text(encoding="utf-8") == RENDERED[path], "make results renders it"


def test_the_best_of_the_baselines_that_surpass_a_score_is_shown():
    baselines = {"a": {"BLEU": 31, "WER, %": 9}, "b": {"BLEU": [32, 34]}, "c": {"BLEU": 29, "coverage": 99}}
    measured = {"scores": {"BLEU": 30, "WER, %": 8, "coverage": 80}, "baselines": baselines}
    runs = [{"task": "t", "data": "d", "model": "m", "measured": measured}]
    _, _, *rows = scores.better_baselines({"runs": runs})
    assert rows == ["| t | d | m | BLEU 30.0 | b | BLEU 33.0 ± 1.4 |"]


def test_figures_have_no_exponents():
    assert [scores.significant(value) for value in (12345, 999.6, 9.996, 0.012345, 0)] == [
        *("12,300", "1,000", "10.0", "0.0123", "0"),
    ]
    figures = {"ms": [3, 1, 2], "ms beside": [1234.4], "ms alone": [0.5]}
    assert scores.medians(figures) == "2.000 ms vs 1,234 ms, 0.5000 ms alone"


GUIDE = ["data", "decoding", "distilling", "finetuning", "onnx", "recipes", "serving", "training", "watching", "ways"]


@pytest.mark.parametrize("page", [*render.PAGES, *(f"docs/{name}.md" for name in GUIDE)])
def test_no_figure_is_typed_by_hand(page):
    """Outside of blocks, code and formulas: decimals, percentages and factors, but for versions."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"<!-- results.*?<!-- end of results -->|```.*?```|`[^`]*`|\$+.*?\$+", "", text, flags=re.DOTALL)
    text = re.sub(r"arXiv:[\d.]+|(Python|transformers|torch|JoeyNMT|Apache-|to) [\d.]+|Apache-2\.0", "", text)
    assert re.findall(r".*\d+\.\d.*|.*\d ?%.*|.*\b\d+ times.*|.*\breached\b.*|.*\bmissed\b.*", text) == []


def test_the_notes_have_no_figures():
    text = (ROOT / "benchmarks" / "notes.md").read_text(encoding="utf-8")
    assert re.findall(r"\d+\.\d|\d ?%|\d times", text) == []


def test_every_score_has_its_provenance():
    runs = scores.load_scores()["runs"]
    assert len({run["id"] for run in runs}) == len(runs) > 40
    for run in runs:
        measured = run["measured"]
        assert {"command", "commit", "seeds", "processor", "date", "source"} <= measured.keys(), run["id"]
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", measured["date"])
        if measured["source"] != "earlier report":
            assert all(measured[key] for key in ("seeds", "processor", "commit")), run["id"]


@pytest.mark.parametrize("name", ["results.json", "results_cuda.json"])
def test_every_measurement_has_its_provenance(name):
    values = json.loads((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))
    for about in (*values["about"].values(), *(row["about"] for row in values["rows"])):
        assert {"processor", "versions", "command", "commit", "date"} <= about.keys()


def run(name, score, **values):
    return {"id": name, "model": name, "measured": {"scores": {"BLEU": score}}} | values


def test_verdicts_follow_from_targets():
    low, high = run("low", 20.0), run("high", 40.0)
    for target, expected in (
        ({"at_least": 40}, "reached"),
        ({"at_least": 40.1}, "missed"),
        ({"at_most": 40}, "reached"),
        ({"at_most": 39.9}, "missed"),
        ({"above_runs": ["low"]}, "reached"),
        ({"above_runs": ["low", "high"]}, "missed"),
    ):
        high["target"] = {"score": "BLEU"} | target
        assert scores.verdict(high, [low, high]) == expected
    assert scores.verdict(low, [low, high]) == ""
    high["measured"]["baselines"] = {"copied": {"BLEU": 41.0}}
    high["target"] = {"score": "BLEU", "above_runs": ["low"]}
    assert scores.verdict(high, [low, high]) == "missed"
    assert scores.describe_target(high, [low, high]) == "BLEU above copied 41.0; low 20.0"
    seeds = run("seeds", [39.0, 41.0], target={"score": "BLEU", "at_least": 40})
    assert scores.verdict(seeds, [seeds]) == "reached"


def test_figures_are_formatted():
    assert scores._figures({"accuracy, %": [91.4, 90.6], "BLEU": 40.04}) == "accuracy 91.0 ± 0.6 %, BLEU 40.0"
    assert scores._figures({"requests": 100004, "growth, MB": 0.2}, sign="; ") == "requests 100,004; growth 0.2 MB"
    errors = {"WQL": [0.0071, 0.0072], "MAE of CO2, ppm": 1.8823, "MSE": [0.081126, 0.081126]}
    assert scores._figures(errors) == "WQL 0.00715 ± 0.00007, MAE of CO2 1.88 ppm, MSE 0.0811"
    table = {"table": "recipes/comparisons/sst2.csv", "model": "GRU"}
    assert scores._figures({"accuracy, %": table}) == "accuracy 80.8 ± 0.3 %"


def test_a_block_that_does_not_exist_is_an_error():
    with pytest.raises(KeyError):
        render.fill("<!-- results: other -->\n<!-- end of results -->", {})


RECIPE = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
folder.mkdir(parents=True)
seed = int(sys.argv[sys.argv.index("--seed") + 1])
results = {"test_accuracy": 80.0 + seed, "test_majority_accuracy": 50.0}
(folder / "all_results.json").write_text(json.dumps(results))
save_file({"weight": torch.zeros(1000, 1234)}, folder / "model.safetensors")
"""


def test_a_benchmark_stores_its_figures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record, "FILE", tmp_path / "scores.json")
    record.FILE.write_text(json.dumps({"runs": [{"id": "load"}]}), encoding="utf-8")
    command = record.this_command(["/x/serving_load.py", "--rounds", "2", "--record", "load", "/data/model"])
    record.store("load", {"ratio": 2.0}, command, on="1 threads")
    (found,) = json.loads(record.FILE.read_text(encoding="utf-8"))["runs"]
    assert found["measured"]["command"] == "python benchmarks/serving_load.py --rounds 2 model"
    assert (found["measured"]["scores"], found["measured"]["on"]) == ({"ratio": 2.0}, "1 threads")
    assert {"commit", "seeds", "processor", "date", "source"} <= found["measured"].keys()


def test_a_run_is_recorded(tmp_path, monkeypatch):
    baselines = {"majority": {"accuracy, %": "test_majority_accuracy"}}
    keys = {"scores": {"accuracy, %": "test_accuracy"}, "baselines": baselines}
    entry = {"id": "new", "task": "sentiment", "model": "LSTM", "data": "SST-2", "keys": keys}
    for module in (record, scores):
        monkeypatch.setattr(module, "FILE", tmp_path / "scores.json")
    record.FILE.write_text(json.dumps({"runs": [entry]}), encoding="utf-8")
    (tmp_path / "recipe.py").write_text(RECIPE, encoding="utf-8")
    command = ["--", "python", str(tmp_path / "recipe.py"), "--train_file", "/data/train.tsv"]
    assert scores.load_scores()["runs"] == []
    record.main(["new", "--seeds", "1", "3", "--output_dir", str(tmp_path / "runs"), *command])
    (found,) = scores.load_scores()["runs"]
    measured = found.pop("measured")
    assert found == entry
    assert measured["scores"] == {"accuracy, %": [81.0, 83.0]}
    assert measured["baselines"] == {"majority": {"accuracy, %": [50.0, 50.0]}}
    assert (measured["seeds"], measured["parameters_millions"]) == ([1, 3], 1.23)
    assert measured["command"] == "python recipe.py --train_file train.tsv"
    assert all(measured[key] for key in ("processor", "commit", "date", "versions"))
    with pytest.raises(SystemExit, match="other: no such entry"):
        record.main(["other", *command])


COMPARISON = """
import sys
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output_dir") + 1])
folder.mkdir(parents=True)
assert sys.argv[sys.argv.index("--seed") + 1 :][:3] == ["7", "--num_seeds", "2"]
(folder / "table.csv").write_text("model,accuracy,accuracy_std,parameters,ms_a_text\\nLSTM,80,1,2000000,0.5\\n")
for name in ("table.md", "trade_off.png"):
    (folder / name).touch()
"""


def test_a_comparison_is_recorded(tmp_path, monkeypatch):
    for module in (record, scores):
        monkeypatch.setattr(module, "FILE", tmp_path / "scores.json")
    monkeypatch.setattr(record, "TABLES", tmp_path)
    record.FILE.write_text(json.dumps({"runs": [{"id": "new_lstm"}]}), encoding="utf-8")
    (tmp_path / "recipe.py").write_text(COMPARISON, encoding="utf-8")
    command = ["--", "python", str(tmp_path / "recipe.py")]
    record.main(["new", "--table", "mine", "--seeds", "7", "8", "--output_dir", str(tmp_path / "runs"), *command])
    (found,) = scores.load_scores()["runs"]
    table = {"table": "recipes/comparisons/mine.csv", "model": "LSTM"}
    assert found["measured"]["scores"] == {"accuracy, %": table} and found["measured"]["seeds"] == [7, 8]
    assert (found["measured"]["parameters_millions"], found["measured"]["command"]) == (2.0, "python recipe.py")
    assert scores.read_table(tmp_path / "mine.csv")["LSTM"]["accuracy"] == "80"
    assert (tmp_path / "mine.md").exists() and (tmp_path / "mine.png").exists()


def test_the_picture_shows_every_model_where_it_stands():
    table = scores.read_table(ROOT / "recipes" / "comparisons" / "trec.csv")
    models = trade_off.points(table, others=["Transformer"])
    drawn = ElementTree.fromstring(trade_off.picture(models, "a < b", "accuracy, %", "ours", "theirs"))
    svg = "{http://www.w3.org/2000/svg}"
    labels = [text.text for text in drawn.iter(f"{svg}text")]
    assert all(labels.count(one.name) == 1 for one in models) and "a < b" in labels
    circles = [{key: float(circle.get(key)) for key in ("cx", "cy", "r")} for circle in drawn.iter(f"{svg}circle")][2:]
    assert len(circles) == len(models)
    # The largest is drawn first.
    for key, of, sign in (("cx", "latency", 1), ("cy", "score", -1), ("r", "size", 1)):
        values = sorted(sign * circle[key] for circle in circles)
        ranked = sorted(models, key=lambda one, of=of: getattr(one, of))
        by_size = sorted(models, key=lambda one: -one.size)
        assert [sign * circles[by_size.index(one)][key] for one in ranked] == values
