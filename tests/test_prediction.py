"""Decoded, scored and classified files: exact, in the order of the input, nothing lost."""

import json
import math
import os
import socket

import processes
import pytest
import torch
from accelerate import PartialState
from test_ensembles import FAMILIES, make, make_classifier, make_pointer
from transformers import ByT5Tokenizer, pipeline

from hfseq.errors import InputError
from hfseq.inference.alignment import best_word, fill_unknown, word_spans
from hfseq.inference.classify import Decision, classify_texts
from hfseq.inference.ensembles import EnsembleForConditionalGeneration
from hfseq.inference.files import check_output_file, read_texts, write_decisions, write_predictions
from hfseq.inference.generate import Hypothesis, decode_texts, generation_options, perplexity, score_texts
from hfseq.tokenization import train_tokenizer

TEXTS = [
    "the cat, the cat sat on the mat and saw a dog",
    "a dog",
    "",
    "where is the house of the cat?",
    "  \t",
    "yes",
    "Zoë sat on 2,031 mats in Ulm",
]
TARGETS = ["die Katze sah einen Hund", "ein Hund", "", "wo ist das Haus der Katze?", "ja", "ja ja", "Zoë saß in Ulm"]
TASK = "translate this: "
EOS, UNK = 2, 3
LENGTHS = {"max_source_length": 64}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "beam": {"num_beams": 3},
}


@pytest.fixture(scope="module")
def tokenizer():
    """Of words, with many that it does not know."""
    words = "the cat sat on mat and saw a dog where is house of yes , ? translate this : die Katze sah Hund ja"
    return train_tokenizer([words] * 2, model="word", vocab_size=40)


@pytest.fixture(scope="module", params=[*FAMILIES, "ensemble"])
def model(request, tokenizer):
    if request.param == "ensemble":
        return EnsembleForConditionalGeneration([make(family, len(tokenizer)) for family in ("gru", "cnn", "t5")])
    return make(request.param, len(tokenizer))


def log_probability(model, tokenizer, source, target):
    """Of target ids, one after the other, in a row of its own without padding."""
    inputs, so_far, total = tokenizer(source, return_tensors="pt"), [1], 0.0
    for token in target:
        logits = model(**inputs, decoder_input_ids=torch.tensor([so_far]), use_cache=False).logits[0, -1].double()
        total += (logits[token] - logits.logsumexp(-1)).item()
        so_far.append(token)
    return total


def up_to_end(sequence):
    tokens = sequence.tolist()[1:]
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


# --- decoding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_rows_are_decoded_in_their_places(model, tokenizer, mode):
    options = generation_options(**MODES[mode], max_length=9)
    nbest, counts = decode_texts(model, tokenizer, TEXTS, batch_size=4, prefix=TASK, scores=True, **LENGTHS, **options)
    assert counts == {"empty": 2}
    for text, found in zip(TEXTS, nbest, strict=True):
        if not text.strip():
            assert found == [Hypothesis("", 0.0)]
            continue
        encoded = tokenizer(TASK + text, return_tensors="pt")
        alone = model.generate(**encoded, **options, return_dict_in_generate=True, output_scores=True)
        texts = [one.strip() for one in tokenizer.batch_decode(alone.sequences, skip_special_tokens=True)]
        assert [one.text for one in found] == texts
        if options["num_beams"] > 1:
            scores = alone.sequences_scores.tolist()
        else:
            (ids,) = map(up_to_end, alone.sequences)
            scores = [log_probability(model, tokenizer, TASK + text, ids) / len(ids)]
        assert [one.score for one in found] == pytest.approx(scores, abs=1e-4)
    assert len({one.score for found in nbest for one in found}) > 4


def test_no_scores_unless_asked_for_and_cut_sources_are_counted(tokenizer):
    model = make("gru", len(tokenizer))
    nbest, counts = decode_texts(model, tokenizer, TEXTS, batch_size=3, max_source_length=4, max_length=6)
    assert counts == {"empty": 2, "cut": 3}
    assert all(one.score is None for found in nbest for one in found)
    ids = tokenizer(TEXTS[0])["input_ids"][:3] + [EOS]
    alone = model.generate(torch.tensor([ids]), max_length=6)
    assert nbest[0][0].text == tokenizer.decode(alone[0], skip_special_tokens=True).strip()
    assert decode_texts(model, tokenizer, ["", " "], batch_size=3, max_length=6, **LENGTHS) == (
        [[Hypothesis("", None)]] * 2,
        {"empty": 2},
    )


def test_samples_are_those_of_the_seed(tokenizer):
    model = make("lstm", len(tokenizer))
    options = generation_options(do_sample=True, num_beams=5, num_return_sequences=4, top_k=0, max_length=9)
    runs = [
        decode_texts(model, tokenizer, TEXTS, batch_size=2, scores=True, seed=seed, **LENGTHS, **options)[0]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert len({one.text for one in runs[0][0]}) > 1 and len(runs[0][0]) == 4
    # what was drawn is scored as the model has it, warped or not
    options = generation_options(do_sample=True, temperature=0.3, max_length=9)
    warped, _ = decode_texts(model, tokenizer, TEXTS[:1], batch_size=2, scores=True, **LENGTHS, **options)
    ids = tokenizer(warped[0][0].text)["input_ids"]
    torch.manual_seed(42)
    drawn = up_to_end(model.generate(**tokenizer(TEXTS[0], return_tensors="pt"), **options)[0])
    assert ids and warped[0][0].score == pytest.approx(
        log_probability(model, tokenizer, TEXTS[0], drawn) / len(drawn), abs=1e-4
    )


def test_ids_of_another_model_are_refused(tokenizer):
    with pytest.raises(InputError, match="outside the vocabulary, 0 to 12"):
        decode_texts(make("gru"), tokenizer, TEXTS, batch_size=2, **LENGTHS)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("count", [1, 2])
def test_words_beyond_the_vocabulary_are_copied(count, side, tokenizer):
    """Decoded as the pipeline does, and scored, in a batch, as each row alone is."""
    size = len(tokenizer)
    members = [make_pointer(seed, vocab_size=size) for seed in (0, 2)[:count]]
    model = EnsembleForConditionalGeneration(members) if count > 1 else members[0]
    options = {"num_beams": 2, "num_return_sequences": 2, "max_length": 9}
    tokenizer.padding_side = side
    nbest, _ = decode_texts(
        model, tokenizer, TEXTS, batch_size=4, prefix=TASK, scores=True, max_source_length=99, **options
    )
    # the second of three is in the vocabulary
    targets = ["Ulm dog Zoë" if text.strip() else "" for text in TEXTS]
    scores, _ = score_texts(
        model, tokenizer, TEXTS, targets, batch_size=4, max_source_length=99, max_target_length=99, prefix=TASK
    )
    tokenizer.padding_side = "right"
    pipe = pipeline("translation", model=model, tokenizer=tokenizer, device="cpu", prefix=TASK, **options)
    texts = {text for found in nbest for text, _ in found}
    assert any(word in text for text in texts for word in ("Zoë", "Ulm", "031", "mats"))
    for source, target, found, score in zip(TEXTS, targets, nbest, scores, strict=True):
        inputs = tokenizer(TASK + source, return_tensors="pt")
        ids, place = inputs["input_ids"].clone(), {}
        for position, (begin, end) in enumerate(
            tokenizer(TASK + source, return_offsets_mapping=True)["offset_mapping"]
        ):
            if ids[0, position] == UNK:
                piece = (TASK + source)[begin:end]
                ids[0, position] = place.setdefault(piece, size + position)
        known = tokenizer(target)["input_ids"][:-1]
        labels = [place.get(f" {word}", token) for word, token in zip(target.split(), known, strict=True)]
        so_far = torch.tensor([[1, *(UNK if label >= size else label for label in labels)]])
        labels.append(EOS)
        steps = model(**inputs, copy_ids=ids, decoder_input_ids=so_far).logits[0].log_softmax(-1)
        expected = sum(steps[step, label].item() for step, label in enumerate(labels))
        assert score == (pytest.approx(expected, abs=1e-4), len(labels))
        assert source != TEXTS[-1] or [label >= size for label in labels] == [True, False, True, False]
        if source.strip():
            assert [text for text, _ in found] == [one["translation_text"] for one in pipe([source])[0]]
            alone = model.generate(
                **inputs, copy_ids=ids, **options, return_dict_in_generate=True, output_scores=True
            ).sequences_scores
            assert [score for _, score in found] == pytest.approx(alone.tolist(), abs=1e-4)
    with pytest.raises(InputError, match="copies unknown words itself"):
        decode_texts(model, tokenizer, TEXTS, batch_size=4, replace_unknown=True, **LENGTHS)


# --- unknown words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side,prefix", [("right", TASK), ("left", "")])
def test_unknown_words_become_the_source_words_attended_to(model, tokenizer, prefix, side):
    model.set_attn_implementation("eager")
    options = {"num_beams": 2, "num_return_sequences": 2, "max_length": 9, "sequence_bias": [[[UNK], 9.0]]}
    options["no_repeat_ngram_size"] = 2
    tokenizer.padding_side = side
    nbest, _ = decode_texts(
        model, tokenizer, TEXTS, batch_size=4, prefix=prefix, replace_unknown=True, **LENGTHS, **options
    )
    tokenizer.padding_side = "right"
    replaced = set()
    for source, found in zip(TEXTS, nbest, strict=True):
        if not source.strip():
            assert found == [Hypothesis("", None)]
            continue
        encoded = tokenizer(prefix + source, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        for sequence, one in zip(model.generate(**encoded, **options), found, strict=True):
            ids = up_to_end(sequence)
            so_far = torch.tensor([[1, *ids[:-1]]])
            attention = model(**encoded, decoder_input_ids=so_far, output_attentions=True).cross_attentions[-1]
            expected = ""
            for step, token in enumerate(ids):
                if token == UNK:
                    weights = attention[0, :, step].mean(dim=0).tolist()
                    # the end mark has no place in the text; a token of the prefix ends there
                    places = [place for place, (_, end) in enumerate(offsets) if end > len(prefix)]
                    begin, end = offsets[max(places, key=weights.__getitem__)]
                    word = (prefix + source)[begin:end].strip()
                    begin = (prefix + source).index(word, begin)
                    expected += (" " if begin == len(prefix) or (prefix + source)[begin - 1] == " " else "") + word
                    replaced.add(word)
                elif token > UNK:
                    expected += tokenizer.convert_ids_to_tokens(token).replace("▁", " ")
            assert one.text == expected.strip()
    assert len(replaced) > 3


@pytest.mark.parametrize("kind", ["word", "wordpiece", "unigram", "bpe"])
def test_the_word_of_a_token_is_whole(kind):
    """Whatever the tokenizer cuts a word into, and with characters that the normaliser changes."""
    tokenizer = train_tokenizer(["the cat sat on a mat", "translate:"] * 3, model=kind, vocab_size=40)
    text = "translate: the  cat Zoe\u0308, on"
    encoded = tokenizer(text)
    spans = word_spans(encoded, text, start=11)
    assert len(spans) == len(encoded["input_ids"]) and spans[-1] is None
    words = list(dict.fromkeys(text[slice(*span)] for span in spans if span))
    expected = ["the", "cat", "Zoe\u0308,", "on"] if kind == "unigram" else ["the", "cat", "Zoe\u0308", ",", "on"]
    assert words == expected


@pytest.mark.parametrize("weights,expected", [([0.1, 0.4, 0.3, 0.2], (2, 3)), ([0.4, 0.1, 0.2, 0.3], (0, 1))])
def test_the_best_word_has_the_largest_weight(weights, expected):
    assert best_word(weights, [(0, 1), None, (2, 3), (2, 3)]) == expected
    assert best_word(weights, [None] * 4) is None


@pytest.mark.parametrize(
    "target,spans,expected",
    [
        ("the <unk> sat", [(0, 3)], "the Zoë sat"),
        ("<unk> sat", [(0, 3)], "Zoë sat"),
        ("the cat<unk> sat", [(3, 4)], "the cat! sat"),
        ("the <unk> <unk>", [(5, 8), (0, 3)], "the Ulm Zoë"),
        ("the <unk> sat", [None], "the sat"),
    ],
)
def test_unknown_ids_are_filled_in(tokenizer, target, spans, expected):
    ids = [1, *tokenizer(target, split_special_tokens=False)["input_ids"], 0, 0]
    assert ids.count(UNK) == len(spans)
    assert fill_unknown(tokenizer, ids, "Zoë! Ulm", spans) == expected


def test_tokenizers_without_unknown_words_or_places(tokenizer):
    model = make("gru", len(tokenizer))
    with pytest.raises(InputError, match="needs a fast tokenizer"):
        decode_texts(model, ByT5Tokenizer(), TEXTS, batch_size=2, replace_unknown=True, **LENGTHS)
    other = train_tokenizer(TEXTS, model="word", vocab_size=40)
    other.unk_token = None
    with pytest.raises(InputError, match="no unknown token"):
        decode_texts(model, other, TEXTS, batch_size=2, replace_unknown=True, **LENGTHS)


# --- scoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size,side", [(1, "right"), (3, "left"), (7, "right")])
def test_scores_equal_those_of_one_token_after_the_other(model, tokenizer, batch_size, side):
    tokenizer.padding_side = side
    lengths = LENGTHS | {"max_target_length": 5}
    scores, counts = score_texts(model, tokenizer, TEXTS, TARGETS, batch_size=batch_size, prefix=TASK, **lengths)
    tokenizer.padding_side = "right"
    assert counts == {"cut": 2}
    for source, target, score in zip(TEXTS, TARGETS, scores, strict=True):
        ids = tokenizer(target, max_length=5, truncation=True)["input_ids"]
        assert score.tokens == len(ids)
        assert score.log_probability == pytest.approx(log_probability(model, tokenizer, TASK + source, ids), abs=1e-4)
    total = sum(score.log_probability for score in scores) / sum(score.tokens for score in scores)
    assert perplexity(scores) == pytest.approx(math.exp(-total))


def test_each_source_needs_a_target(tokenizer):
    model = make("gru", len(tokenizer))
    lengths = LENGTHS | {"max_target_length": 9}
    with pytest.raises(InputError, match="7 sources and 6 targets"):
        score_texts(model, tokenizer, TEXTS, TARGETS[:-1], batch_size=2, **lengths)
    assert score_texts(model, tokenizer, [], [], batch_size=2, **lengths) == ([], {})


# --- classification ------------------------------------------------------------------------------------------------

PROBLEMS = ["single_label_classification", "multi_label_classification", "regression"]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("family", ["lstm", "bert"])
def test_classes_are_those_of_the_pipeline(family, problem, tokenizer):
    model = make_classifier(family, 2, len(tokenizer), problem_type=problem)
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu", top_k=None)
    decisions, counts = classify_texts(model, tokenizer, TEXTS, batch_size=3, max_length=64, separator=";")
    assert counts == {"empty": 2}
    labels = set()
    for text, decision in zip(TEXTS, decisions, strict=True):
        if not text.strip():
            assert decision == Decision("", {})
            continue
        expected = {one["label"]: one["score"] for one in pipe([text])[0]}
        assert decision.scores == pytest.approx(expected, abs=1e-5)
        best, *_ = expected
        if problem == "multi_label_classification":
            best = ";".join(name for name in ("bad", "good", "so-so") if expected[name] >= 0.5)
        elif problem == "regression":
            best = ";".join(f"{decision.scores[name]:.6g}" for name in ("bad", "good", "so-so"))
        assert decision.label == best
        labels.add(best)
    assert len(labels) > 1


@pytest.mark.parametrize("problem", PROBLEMS[:2])
def test_classes_of_one_name_are_one(problem, tokenizer):
    names = {0: "other", 1: "city", 2: "other"}
    model = make_classifier("lstm", 2, len(tokenizer), problem_type=problem, id2label=names)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data = torch.tensor([0.9, 1.0, -3.0])
    ((decision,), _) = classify_texts(model, tokenizer, TEXTS[:1], batch_size=1, max_length=64, separator=";")
    first, second, third = (
        model.classifier.bias.softmax(0) if problem == PROBLEMS[0] else model.classifier.bias.sigmoid()
    )
    both = first + third if problem == PROBLEMS[0] else first
    assert decision.scores == pytest.approx({"other": both.item(), "city": second.item()})
    assert decision.label == ("city" if problem == PROBLEMS[0] else "other;city")


def test_a_classifier_of_nothing_but_empty_and_of_cut_texts(tokenizer):
    model = make_classifier("lstm", 1, len(tokenizer))
    assert classify_texts(model, tokenizer, [""], batch_size=1, max_length=9) == ([Decision("", {})], {"empty": 1})
    decisions, counts = classify_texts(model, tokenizer, [TEXTS[0], TEXTS[1]], batch_size=2, max_length=4)
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"][:3] + [EOS]])
    assert counts == {"cut": 1}
    assert list(decisions[0].scores.values()) == pytest.approx(model(ids).logits[0].softmax(-1).tolist(), abs=1e-5)
    with pytest.raises(InputError, match="outside the vocabulary"):
        classify_texts(make_classifier("lstm", 1), tokenizer, TEXTS, batch_size=2, max_length=9)


# --- several processes ---------------------------------------------------------------------------------------------


def results(tokenizer):
    sizes = {"batch_size": 2, "max_source_length": 64}
    options = generation_options(do_sample=True, num_return_sequences=2, max_length=9)
    model = make("lstm", len(tokenizer))
    return [
        decode_texts(model, tokenizer, TEXTS, scores=True, **sizes, **options),
        score_texts(model, tokenizer, TEXTS, TARGETS, max_target_length=64, **sizes),
        classify_texts(make_classifier("cnn", 1, len(tokenizer)), tokenizer, TEXTS, batch_size=2, max_length=64),
    ]


def process_of_two(rank, directory, port, tokenizer):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert PartialState(cpu=True).num_processes == 2
    torch.save(results(tokenizer), f"{directory}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tokenizer, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.start(process_of_two, str(tmp_path), port, tokenizer)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    assert one == other == results(tokenizer)


# --- flags ---------------------------------------------------------------------------------------------------------


def test_flags_as_arguments_of_generate():
    greedy = {"num_beams": 1, "num_return_sequences": 1, "do_sample": False, "early_stopping": False}
    assert generation_options() == greedy
    beams = {"num_beams": 4, "num_return_sequences": 4, "do_sample": False, "length_penalty": 0.0, "max_length": 7}
    assert generation_options(num_beams=4, num_return_sequences=4, length_penalty=0.0, max_length=7) == beams
    sampling = {"do_sample": True, "num_return_sequences": 9, "temperature": 0.5, "top_k": 0, "top_p": 0.9}
    assert generation_options(num_beams=5, **sampling) == greedy | sampling


@pytest.mark.parametrize(
    "flags,message",
    [
        ({"num_beams": 0}, "at least 1"),
        ({"num_return_sequences": 0}, "at least 1"),
        ({"num_beams": 3, "num_return_sequences": 4}, "num_return_sequences 4 exceeds --num_beams 3"),
        ({"top_p": 0.5, "num_beams": 5}, "--top_p is for sampling"),
        ({"temperature": 1.0}, "--temperature is for sampling"),
        ({"length_penalty": 1.0}, "--length_penalty is for beam search"),
        ({"length_penalty": 1.0, "num_beams": 5, "do_sample": True}, "--length_penalty is for beam search"),
        ({"do_sample": True, "temperature": 0.0}, "--temperature 0.0 must be positive"),
        ({"do_sample": True, "temperature": float("inf")}, "--temperature inf"),
        ({"do_sample": True, "top_k": -1}, "--top_k -1 must not be negative"),
        ({"do_sample": True, "top_p": 0.0}, "--top_p 0.0"),
        ({"do_sample": True, "top_p": 1.1}, "--top_p 1.1"),
    ],
)
def test_flags_that_make_no_sense(flags, message):
    with pytest.raises(InputError, match=message):
        generation_options(**flags)


# --- files ---------------------------------------------------------------------------------------------------------

LINES = ["ein Text", "", "  ", "drei\u2028vier", '"fünf"']


@pytest.mark.parametrize(
    "name,content,options",
    [
        ("in.txt", "\n".join(LINES) + "\n", {}),
        ("in.txt", "\ufeff" + "\r\n".join(LINES), {}),
        ("in.en", "\n".join(LINES), {}),
        ("in.csv", 'de,en\nx,ein Text\n\ny,"  "\nz,drei\u2028vier\n,"""fünf"""\n', {}),
        ("in.tsv", "ein Text\tx\n\n  \ty\ndrei\u2028vier\tz\n" + '"fünf"\t\n', {"column_names": ["en", "de"]}),
        ("in.jsonl", "".join(json.dumps({"en": text or None}) + "\n" for text in LINES), {}),
        ("in.jsonl", "".join(json.dumps({"translation": {"en": text}}) + "\n" for text in LINES), {}),
    ],
)
def test_every_line_of_a_file_is_read(name, content, options, tmp_path):
    (tmp_path / name).write_bytes(content.encode())
    assert read_texts(str(tmp_path / name), "en", **options) == LINES
    if name == "in.en":
        assert read_texts(str(tmp_path / "in"), "en") == LINES
        (tmp_path / "in.txt").write_bytes(b"a\rb\nc")
        assert read_texts(str(tmp_path / "in.txt"), "en") == ["a\rb", "c"]


@pytest.mark.parametrize(
    "name,content,column,message",
    [
        ("in.csv", b"de,fr\na,b\n", "en", "no column 'en'; there are 'de', 'fr'"),
        ("in.jsonl", b'{"de": "a"}\n', "en", "no column 'en'"),
        ("in.txt", b"a\n\xff\n", "en", "--test_file .*in.txt: cannot be read as UTF-8"),
        ("gone", None, "en", r"no files .*gone\.en"),
        ("gone.csv", None, "en", "no such file"),
    ],
)
def test_files_that_cannot_be_read(name, content, column, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(str(tmp_path / name), column)


NBEST = [
    [Hypothesis("ein\nText\r\n", -0.5), Hypothesis("ein\tText", -1.25)],
    [Hypothesis("", 0.0)],
    [Hypothesis("Zoë\u2028\x0b.", None)],
    [Hypothesis("a\x00b\x00", None)],
]


def test_written_texts_are_one_to_a_line(tmp_path):
    plain, table, objects = (tmp_path / "new" / name for name in ("out.txt", "out.tsv", "out.jsonl"))
    for path in (plain, table, objects):
        write_predictions(str(path), NBEST)
    assert plain.read_bytes().decode() == "ein Text\n\nZoë  .\na\x00b\x00\n"
    assert table.read_bytes().decode().split("\n") == [
        "row\trank\tscore\ttext",
        "1\t1\t-0.5\tein Text",
        "1\t2\t-1.25\tein Text",
        "2\t1\t0\t",
        "3\t1\t\tZoë  .",
        "4\t1\t\ta\x00b\x00",
        "",
    ]
    rows = [json.loads(line) for line in objects.read_text(encoding="utf-8").split("\n")[:-1]]
    assert rows[1] == {"row": 1, "rank": 2, "score": -1.25, "text": "ein\tText"}
    assert [(row["row"], row["rank"]) for row in rows] == [(1, 1), (1, 2), (2, 1), (3, 1), (4, 1)]
    assert rows[-1]["text"] == "a\x00b\x00"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"out.txt", "out.tsv", "out.jsonl"}


def test_written_classes(tmp_path):
    """Of which one has the name of a column."""
    decisions = [Decision("", {}), Decision("row", {"row": 0.75, "so\tso": 0.25})]
    plain, table, objects = (tmp_path / name for name in ("out", "out.tsv", "out.jsonl"))
    for path in (plain, table, objects):
        write_decisions(str(path), decisions)
    assert plain.read_text() == "\nrow\n"
    assert table.read_text() == "row\tlabel\trow\tso so\n1\t\t\t\n2\trow\t0.75\t0.25\n"
    assert [json.loads(line) for line in objects.read_text().splitlines()] == [
        {"row": 1, "label": "", "scores": {}},
        {"row": 2, "label": "row", "scores": {"row": 0.75, "so\tso": 0.25}},
    ]


def test_a_file_is_replaced_as_a_whole_and_only_when_told(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("old")
    with pytest.raises(InputError, match="out.jsonl exists; name another, or give --overwrite_output_file"):
        write_predictions(str(path), NBEST)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_predictions(str(path), [NBEST[0], [Hypothesis("text", 1j)]], overwrite=True)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    write_predictions(str(path), NBEST, overwrite=True)
    assert path.read_text(encoding="utf-8").startswith('{"row": 1, ') and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="cannot be written: "):
        write_predictions(str(path / "below.txt"), NBEST)


def test_output_files_are_checked_beforehand(tmp_path):
    (tmp_path / "old.txt").write_text("")
    check_output_file(str(tmp_path / "old.txt"), overwrite=True)
    check_output_file(str(tmp_path / "new.tsv"), num_return_sequences=3)
    with pytest.raises(InputError, match="old.txt exists"):
        check_output_file(str(tmp_path / "old.txt"))
    with pytest.raises(InputError, match="is a directory"):
        check_output_file(str(tmp_path), overwrite=True)
    with pytest.raises(InputError, match="one text per line; for --num_return_sequences 3"):
        check_output_file(str(tmp_path / "new.txt"), num_return_sequences=3)
