"""The parts of the speed benchmarks that a wrong table could come from; what they measure is not tested."""

import json
import sys
from functools import partial

import pandas as pd
import pytest
import soundfile
import torch
from recipe_runs import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import beside_joeynmt  # noqa: E402
import cross_validation  # noqa: E402
import digit_strings  # noqa: E402
import limits  # noqa: E402
import results  # noqa: E402
import run  # noqa: E402
import samples  # noqa: E402
import speed_encoder  # noqa: E402
import speed_generation  # noqa: E402
import timing  # noqa: E402

import hfseq  # noqa: E402
from hfseq.models.recurrent import KernelLayer, RecurrentStack  # noqa: E402


def test_sides_take_turns_and_the_warm_up_does_not_count():
    calls, seconds = [], iter(range(100))

    def side(name):
        calls.append(name)
        return next(seconds)

    times = timing.in_turns({"a": lambda: side("a"), "b": lambda: side("b")}, rounds=3, warm_up=1)
    assert "".join(calls) == "baabbaab"
    assert times == {"a": [2, 5, 6], "b": [3, 4, 7]}


def test_ratios_and_verdicts():
    assert timing.speedups({"ours": [1.0, 2.0], "theirs": [3.0, 3.0]}, "ours", "theirs") == [3.0, 1.5]
    speed = timing.Row("m", "b", 2.0, [1.5, 2.5, 2.0])
    assert (speed.median, speed.verdict) == (2.0, "reached")
    speed.target = 2.1
    assert speed.verdict == "missed"
    cost = timing.Row("m", "b", 1.1, [1.2], at_most=True)
    assert cost.verdict == "missed"
    cost.ratios = [1.1]
    assert cost.verdict == "reached"
    assert (timing.Row("m", "b", 1.0).median, timing.Row("m", "b", 1.0).verdict) == (None, "not measured")


def limit():
    product = limits.Product("output layer", 10, 20, 30, 2)
    return limits.Limit("float32", [(product, 1.0, 50.0)], gflop=3.0, best_ms=60.0, step_ms=100.0, bandwidth=9.0)


def test_the_table(tmp_path):
    machine = {"threads": "1", "command": "make bench"}
    rows = [
        timing.Row("speed", "loop", 2.0, [1.0, 4.0, 3.0], figures={"ms": [5.0, 7.0, 6.0]}, about=machine),
        timing.Row("cost", "step", 0.05, [0.1], at_most=True, note="why", about={"threads": "1", "date": "today"}),
        timing.Row("other", "tool", 3.0, note="how to get it", about=machine),
    ]
    profiles = {"float32": {"loss": 0.75, "rest": 0.25}, "bfloat16": {"rest": 1.0}}
    about = dict.fromkeys(("curves", "limits", "profiles"), {"threads": "2"})
    text = "\n".join(results.speed({"cpu": rows}, [limit()], profiles, about))
    assert "| speed | loop | 3 [1..4] | ≥ 2 | reached | 6.000 ms | A |" in text
    assert "| cost (1) | step | 0.1 [0.1..0.1] | ≤ 0.05 | missed |  | B |" in text
    assert "| other (2) | tool |  | ≥ 3 | not measured |  | A |" in text
    assert "1. why.\n2. how to get it." in text
    assert "- A: Measured on threads: 1; command: `make bench`.\n- B: Measured on threads: 1; date: today." in text
    assert text.count("Measured on threads: 2.") == 3
    assert "| loss | 75.0% | 0.0% |" in text and "| rest | 25.0% | 100.0% |" in text
    assert "60%" in text and "| output layer | 10 × 20 × 30 | 2 | 100.0% | 50 |" in text
    assert "### On a GPU" not in text
    gpu = {"cuda": [timing.Row("speed", "loop", 2.0, [9.0], about={"device": "H"})]}
    text = "\n".join(results.speed({"cpu": rows} | gpu, [limit()], profiles, about))
    below = text.partition("### On a GPU")[2]
    assert "device: H." in below and "| speed | loop | 9 [9..9] | ≥ 2 | reached |  | A |" in below
    results.plot_ratios(rows, tmp_path / "ratios.png")
    curves = {"tokens": [8, 16], "ms": {"LSTM": [1.0, 1.0]}, "bytes": {"LSTM": [4, 4]}}
    results.plot_language_models(curves, tmp_path / "models.png")
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("ratios.png", "models.png"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = hfseq.LstmConfig(
        vocab_size=40, hidden_size=8, embedding_size=6, attention_type="general", tie_word_embeddings=False
    )
    model = hfseq.LstmForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # biases start from zero
            weight.normal_(std=0.5)
    return model


def batch():
    ids = torch.tensor([[5, 6, 7, 8, 2], [9, 3, 2, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def test_the_hand_written_loop_writes_what_generate_writes(model):
    found = speed_generation.hand_written(model, batch(), 7)
    expected = model.generate(**batch(), max_new_tokens=7, do_sample=False, num_beams=1, eos_token_id=None)
    assert torch.equal(found, expected)


def test_plain_lstm_has_the_weights_of_the_stack():
    torch.manual_seed(0)
    stack = RecurrentStack(partial(KernelLayer, "LSTM"), 6, 6, speed_encoder.LAYERS, bidirectional=True)
    inputs = torch.randn(3, 5, 6)
    torch.testing.assert_close(speed_encoder.plain_lstm(stack, 6)(inputs)[0], stack(inputs)[0][-1])


def test_ids_go_to_joeynmt_and_back():
    ids = torch.tensor([[0, 1, 2, 3, 4, 39]])
    assert beside_joeynmt.their_ids(ids).tolist() == [[1, 2, 3, 0, 4, 39]]
    labels = torch.tensor([[7, 3, 2], [8, 2, -100]])
    assert beside_joeynmt.targets(labels).tolist() == [[2, 7, 0, 3], [2, 8, 3, 1]]


def test_joeynmts_weights_are_all_of_ours(model):
    """Every weight but those of the bridge, which is frozen at zero, arrives once."""
    before = sum(weight.numel() for weight in model.decoder.bridge.parameters())
    beside_joeynmt.freeze_bridge(model)
    assert not any(weight.any() or weight.requires_grad for weight in model.decoder.bridge.parameters())
    theirs = beside_joeynmt.their_weights(model)
    carried = {name: weight for name, weight in theirs.items() if weight.any() and not name.startswith("trg_embed")}
    assert sum(weight.numel() for weight in carried.values()) == model.num_parameters() - before
    output = model.state_dict()["lm_head.weight"]
    assert torch.equal(theirs["decoder.output_layer.weight"][beside_joeynmt.their_ids(torch.arange(40))], output)


def test_the_products_of_a_step_are_those_that_torch_counts(model):
    """All but the recurrent ones, which its counter does not know."""
    from torch.utils.flop_counter import FlopCounterMode

    inputs = batch() | {"decoder_input_ids": torch.tensor([[1, 5, 6], [1, 7, 8]])}
    with FlopCounterMode(display=False) as counter:
        model(**inputs)
    products = limits.products_of(rows=2, source=5, target=3, labelled=6, embedding=6, hidden=8, vocabulary=40)
    known = [product for product in products if not product.name.startswith(("encoder", "decoder"))]
    assert counter.get_total_flops() == sum(2 * p.m * p.k * p.n * p.count for p in known)


def test_quick_sizes_change_all_that_takes_time():
    full, quick = vars(samples.Sizes()), vars(samples.QUICK)
    assert all(quick[name] < full[name] for name in full)
    json.dumps(quick)


def test_rows_that_are_measured_again_have_a_machine_of_their_own(tmp_path, monkeypatch):
    """`--only` leaves the other rows with theirs, and curves that it did not take."""
    old = {"processor": "old", "command": "make bench"}
    rows = [timing.Row("a", "b", 1.0, [2.0], about=old), timing.Row("c", "d", 1.0, [2.0], about=old)]
    values = {"rows": [vars(row) for row in rows], "curves": {"tokens": [1]}, "about": {"curves": old}}
    monkeypatch.setitem(run.MEASURES, "greedy", lambda *_: timing.Row("c", "d", 1.0, [0.5]))
    monkeypatch.setattr(run, "machine", lambda *_: {"processor": "new"})
    args = run.parse(["--only", "greedy", "--rounds", "3"])
    found = run.measure_again(samples.Samples(samples.QUICK, None, "cpu"), args, values)
    assert [row["about"]["processor"] for row in found["rows"]] == ["old", "new"]
    assert found["rows"][1]["about"]["command"] == "python benchmarks/run.py --rounds 3 --only greedy"
    assert found["rows"][1]["ratios"] == [0.5]
    assert (found["curves"], found["about"]) == (values["curves"], values["about"])


def test_strings_of_digits_are_of_one_speaker_and_of_the_takes_of_their_split(tmp_path, monkeypatch):
    monkeypatch.setattr(digit_strings, "SPLITS", {"train": 5, "dev": 30, "test": 30})
    folder = tmp_path / "recordings"
    folder.mkdir()
    for digit in range(10):
        for take in (0, 4, 5, 7, 8, 19):
            for sign, speaker in ((1, "ann"), (-1, "bob")):
                value = sign * (1 + digit * 20 + take) / 256
                soundfile.write(folder / f"{digit}_{speaker}_{take}.wav", [value] * 400, 8000)
    digit_strings.main([str(folder), str(tmp_path / "one")])
    digit_strings.main([str(folder), str(tmp_path / "two")])
    for split, takes in (("dev", {5, 7}), ("test", {0, 4})):
        rows = pd.read_csv(tmp_path / "one" / split / "metadata.csv")
        seen = set()
        for name, text in zip(rows["file_name"], rows["transcription"], strict=True):
            samples, rate = soundfile.read(tmp_path / "one" / split / name)
            assert (
                rate == 8000
                and (tmp_path / "two" / split / name).read_bytes() == (tmp_path / "one" / split / name).read_bytes()
            )
            values = (samples[::400] * 256).round().astype(int)
            assert len(set(values > 0)) == 1 and 1 <= len(values) <= 5
            codes = abs(values) - 1
            assert text == " ".join(digit_strings.WORDS[code // 20] for code in codes)
            seen |= {int(code) % 20 for code in codes}
        assert seen == takes
    # The recordings of training are faster or slower.
    rows = pd.read_csv(tmp_path / "one" / "train" / "metadata.csv")
    lengths = [
        soundfile.info(tmp_path / "one" / "train" / name).frames / (400 * len(text.split()))
        for name, text in zip(rows["file_name"], rows["transcription"], strict=True)
    ]
    assert all(0.85 < length < 1.2 for length in lengths) and any(abs(length - 1) > 0.02 for length in lengths)


RECIPE = """
import json, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
rows = {name: open(flags[f"--{name}_file"]).read().splitlines() for name in ("train", "test")}
assert rows["train"][0] == rows["test"][0] == "text" and not set(rows["train"][1:]) & set(rows["test"][1:])
score = len(rows["test"]) + int(flags["--seed"]) + float(flags.get("--bonus", 0))
with open(flags["--output_dir"] + ".log", "a") as log:
    log.write("x")
import os
os.makedirs(flags["--output_dir"], exist_ok=True)
json.dump({"test_accuracy": score}, open(flags["--output_dir"] + "/all_results.json", "w"))
"""


def test_settings_are_compared_on_rows_that_were_held_out(tmp_path, capsys):
    (tmp_path / "recipe.py").write_text(RECIPE)
    (tmp_path / "rows.csv").write_text("text\n" + "".join(f"row {number % 30}\n" for number in range(40)))
    command = [str(tmp_path / "recipe.py"), "--train_file", str(tmp_path / "rows.csv"), "--header"]
    command += ["--metric", "accuracy", "--folds", "3", "--seeds", "1", "2", "--output_dir", str(tmp_path / "folds")]
    cross_validation.main([*command, "--setting=--bonus 3"])
    rows = [len((tmp_path / f"folds/fold{fold}/test.csv").read_text().splitlines()) - 1 for fold in range(3)]
    assert sum(rows) == 40
    mean = sum(rows) / 3 + 2.5  # the header and the mean of the seeds
    table = capsys.readouterr().out.splitlines()[-3:]
    assert [line.split() for line in table[1:]] == [
        [f"{mean:.2f}", "as", "configured"],
        [f"{mean + 3:.2f}", "+3.00", "±", "0.00", "--bonus", "3"],
    ]
    assert (tmp_path / "folds/fold0/run.log").read_text() == "xxxx"
    cross_validation.main([*command, "--setting=--bonus 3", "--setting=--bonus 4"])
    assert (tmp_path / "folds/fold0/run.log").read_text() == "xxxxxx"
    with pytest.raises(SystemExit, match="exit status 1"):
        cross_validation.main([*command, "--setting=--bonus x"])
