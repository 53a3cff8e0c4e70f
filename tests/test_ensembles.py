"""Ensembles give the mean of their members' probabilities in every mode of `generate`, padded and in pipelines."""

import itertools
import logging
import math

import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorForSeq2Seq,
    DynamicCache,
    EncoderDecoderCache,
    Seq2SeqTrainingArguments,
    T5Config,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hfseq import CnnConfig, GruConfig, LstmConfig
from hfseq.errors import InputError
from hfseq.inference.ensembles import (
    EnsembleForConditionalGeneration,
    EnsembleForSequenceClassification,
    load_ensemble,
)
from hfseq.tokenization import train_tokenizer
from hfseq.training.trainer import GenerationTrainer

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
EOS = 2
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS, "decoder_start_token_id": 1}
FAMILIES = {
    "lstm": lambda **sizes: LstmConfig(hidden_size=12, num_hidden_layers=2, input_feeding=True, **sizes),
    "gru": lambda **sizes: GruConfig(hidden_size=8, num_hidden_layers=1, **sizes),
    "cnn": lambda **sizes: CnnConfig(hidden_size=8, num_hidden_layers=2, **sizes),
    "t5": lambda **sizes: T5Config(
        d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, tie_word_embeddings=False, **IDS, **sizes
    ),
}
SEEDS = {"lstm": 1, "gru": 2, "cnn": 0, "t5": 7}  # with which what they say varies
TEAMS = [("lstm", "gru"), ("cnn", "t5"), ("lstm", "gru", "cnn", "t5")]
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams_returned": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.3},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
}
# No padding, on the right, on the left; a Transformer has no gaps.
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]])
INPUTS = {"input_ids": torch.randint(3, 13, MASK.shape, generator=torch.Generator().manual_seed(0))}
INPUTS["attention_mask"] = MASK


def stir(model, scale=1.0):
    """As initialised, such small models say the same to everything."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-scale, scale)
    return model.eval()


def make(family, vocab_size=13):
    torch.manual_seed(SEEDS[family])
    model = stir(AutoModelForSeq2SeqLM.from_config(FAMILIES[family](vocab_size=vocab_size)))
    model.generation_config.update(**IDS)
    return model


@pytest.fixture(scope="module", params=TEAMS, ids="+".join)
def members(request):
    return [make(family) for family in request.param]


@pytest.fixture(scope="module")
def ensemble(members):
    return EnsembleForConditionalGeneration(members)


def generate(model, inputs=INPUTS, **options):
    torch.manual_seed(3)
    defaults = {"max_new_tokens": 9, "return_dict_in_generate": True, "output_scores": True}
    return model.generate(**inputs, **defaults | options)


def assert_same(one, other):
    assert one.sequences.tolist() == other.sequences.tolist()
    for scores, others in zip(one.scores, other.scores, strict=True):
        # those of greedy search are not normalised
        torch.testing.assert_close(scores.log_softmax(-1), others.log_softmax(-1), **CLOSE)
    if "sequences_scores" in one:
        torch.testing.assert_close(one.sequences_scores, other.sequences_scores, **CLOSE)


def mean_log_probabilities(members, target, row):
    """Of every next token, `[T, V]`, by whole uncached forwards over one row without its padding."""
    ids = INPUTS["input_ids"][row, MASK[row].bool()].unsqueeze(0)
    rows = [
        member(input_ids=ids, decoder_input_ids=torch.tensor([target]), use_cache=False).logits[0].double().softmax(-1)
        for member in members
    ]
    return (sum(rows) / len(rows)).log()


def up_to_end(sequence):
    tokens = sequence.tolist()[1:]
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


# --- generate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_member_and_one_twice_give_what_the_model_gives(family, copies, mode):
    model = make(family)
    ensemble = EnsembleForConditionalGeneration([model] * copies)
    expected = generate(model, **MODES[mode])
    assert len({tuple(up_to_end(row)) for row in expected.sequences}) > 2
    assert_same(generate(ensemble, **MODES[mode]), expected)


@pytest.mark.parametrize("mode", MODES)
def test_cached_equals_uncached(ensemble, mode):
    cached = generate(ensemble, **MODES[mode])
    uncached = generate(ensemble, **MODES[mode], use_cache=False)
    assert cached.cache is not None and uncached.cache is None
    assert_same(cached, uncached)


@pytest.mark.parametrize("mode", ["greedy", "beams", "beams_returned"])
def test_a_batch_generates_what_each_row_generates_alone(ensemble, mode):
    count = MODES[mode].get("num_return_sequences", 1)
    together = generate(ensemble, **MODES[mode])
    for row, mask in enumerate(MASK.bool()):
        alone = generate(ensemble, {"input_ids": INPUTS["input_ids"][row : row + 1, mask]}, **MODES[mode])
        rows = slice(row * count, (row + 1) * count)
        assert list(map(up_to_end, together.sequences[rows])) == list(map(up_to_end, alone.sequences))
        if count > 1:
            torch.testing.assert_close(together.sequences_scores[rows], alone.sequences_scores, **CLOSE)


def test_greedy_search_equals_a_loop_over_mean_probabilities(members, ensemble):
    found = generate(ensemble)
    alone = [generate(member).sequences.tolist() for member in members]
    assert found.sequences.tolist() not in alone
    for row in range(len(MASK)):
        target = [1]
        for step in range(9):
            last = mean_log_probabilities(members, target, row)[-1]
            torch.testing.assert_close(found.scores[step][row].double(), last, **CLOSE)
            target.append(int(last.argmax()))
            if target[-1] == EOS:
                break
        assert up_to_end(found.sequences[row]) == target[1:]


def test_wide_beams_find_the_best_of_all_sequences():
    """Three tokens of five: with 16 beams no prefix is lost, so that every sequence can be compared."""
    members = [make(family, vocab_size=5) for family in TEAMS[-1]]
    ids = torch.tensor([[3, 4, 4, 3], [4, 3, 3, 0]])
    mask = (ids != 0).long()
    # Steps do not see those after them: what follows an end is left out below.
    targets = list(itertools.product(range(5), repeat=3))
    before = torch.tensor([[1, *target[:-1]] for target in targets])
    scores = []
    for row in range(2):
        source = ids[row : row + 1, mask[row].bool()].expand(len(targets), -1)
        total = sum(member(source, decoder_input_ids=before).logits.softmax(-1) for member in members).tolist()
        scores.append({})
        for steps, target in zip(total, targets, strict=True):
            target = target[: target.index(EOS) + 1] if EOS in target else target
            scores[row][target] = sum(math.log(steps[step][token] / 4) for step, token in enumerate(target))
    inputs = {"input_ids": ids, "attention_mask": mask}
    options = {"num_beams": 16, "num_return_sequences": 6, "early_stopping": "never", "max_new_tokens": 3}
    for length_penalty in (0.0, 1.0, 2.0):
        found = generate(EnsembleForConditionalGeneration(members), inputs, length_penalty=length_penalty, **options)
        for row in range(2):
            penalised = {target: score / len(target) ** length_penalty for target, score in scores[row].items()}
            best = sorted(penalised, key=penalised.__getitem__, reverse=True)[:6]
            rows = slice(6 * row, 6 * row + 6)
            assert [tuple(up_to_end(one)) for one in found.sequences[rows]] == best
            expected = torch.tensor([penalised[one] for one in best])
            torch.testing.assert_close(found.sequences_scores[rows], expected, **CLOSE)


def test_each_encoder_runs_once(members, ensemble):
    calls = []
    handles = [
        member.get_encoder().register_forward_hook(lambda *_, family=index: calls.append(family))
        for index, member in enumerate(members)
    ]
    generate(ensemble, num_beams=3)
    for handle in handles:
        handle.remove()
    assert calls == list(range(len(members)))


def test_generation_from_encoder_outputs_and_from_a_returned_cache(ensemble):
    encoded = ensemble.get_encoder()(**INPUTS)
    with pytest.raises(TypeError, match="atention_mask"):
        ensemble.get_encoder()(INPUTS["input_ids"], atention_mask=MASK)
    given = {"encoder_outputs": encoded, "attention_mask": MASK}
    assert_same(generate(ensemble, given, num_beams=3), generate(ensemble, num_beams=3))
    options = {"eos_token_id": None, "pad_token_id": 0}
    whole = generate(ensemble, max_new_tokens=7, **options)
    begun = generate(ensemble, max_new_tokens=3, **options)
    assert begun.cache.get_seq_length() == 3
    more = INPUTS | {"decoder_input_ids": begun.sequences, "decoder_attention_mask": torch.ones(4, 4).long()}
    continued = generate(ensemble, more, max_new_tokens=4, cache=begun.cache, **options)
    assert continued.sequences.tolist() == whole.sequences.tolist()
    torch.testing.assert_close(continued.scores, whole.scores[3:], **CLOSE)


# --- forward -------------------------------------------------------------------------------------------------------

TARGET = torch.randint(3, 13, (4, 5), generator=torch.Generator().manual_seed(1))


def test_logits_loss_and_attention_are_means(members, ensemble):
    labels = TARGET.masked_fill(MASK[:, :5] == 0, -100)
    ensemble.set_attn_implementation("eager")
    found = ensemble(**INPUTS, labels=labels, output_attentions=True)
    rows = [member(**INPUTS, labels=labels, output_attentions=True) for member in members]
    mean = sum(row.logits.softmax(-1) for row in rows) / len(rows)
    torch.testing.assert_close(found.logits, mean.log(), **CLOSE)
    chosen = mean.gather(2, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.loss, -chosen[labels != -100].log().mean(), **CLOSE)
    attention = sum(row.cross_attentions[-1].mean(dim=1, keepdim=True) for row in rows) / len(rows)
    torch.testing.assert_close(found.cross_attentions, (attention,))
    assert ensemble(**INPUTS, labels=labels).cache is None


@pytest.mark.parametrize("method,argument,rows", [
    ("reorder_cache", torch.tensor([2, 2, 0, 3]), [2, 2, 0, 3]),
    ("batch_repeat_interleave", 2, [0, 0, 1, 1, 2, 2, 3, 3]),
    ("batch_select_indices", torch.tensor([3, 1]), [3, 1]),
])  # fmt: skip
def test_cache_methods_choose_rows(ensemble, method, argument, rows):
    """After each the members go on as if they had read the chosen rows from the start."""
    source = {name: value[:1].expand(4, -1) for name, value in INPUTS.items()}
    cache = ensemble(**source, decoder_input_ids=TARGET[:, :3], use_cache=True).cache
    getattr(cache, method)(argument)
    assert cache.get_seq_length() == 3
    source = {name: value[:1].expand(len(rows), -1) for name, value in INPUTS.items()}
    after = TARGET[torch.tensor(rows), 3:]
    found = ensemble(**source, decoder_input_ids=after, cache=cache, use_cache=True).logits
    expected = ensemble(**source, decoder_input_ids=TARGET[torch.tensor(rows)]).logits[:, 3:]
    torch.testing.assert_close(found, expected, **CLOSE)
    cache.reset()
    assert cache.get_seq_length() == 0
    again = ensemble(**source, decoder_input_ids=TARGET[torch.tensor(rows)], cache=cache).logits
    torch.testing.assert_close(again[:, 3:], expected, **CLOSE)


def test_what_belongs_to_another_model_is_refused(members, ensemble):
    foreign = members[-1](**INPUTS, decoder_input_ids=TARGET, use_cache=True).cache
    with pytest.raises(ValueError, match="cache.*belongs to another model"):
        ensemble(**INPUTS, decoder_input_ids=TARGET, cache=foreign)
    longer = EnsembleForConditionalGeneration([*members, members[0]])
    cache = longer(**INPUTS, decoder_input_ids=TARGET, use_cache=True).cache
    with pytest.raises(ValueError, match="does not fit an ensemble of"):
        ensemble(**INPUTS, decoder_input_ids=TARGET, cache=cache)
    for encoded in (members[0].get_encoder()(**INPUTS), longer.get_encoder()(**INPUTS)):
        with pytest.raises(ValueError, match="must be the output of this ensemble's get_encoder"):
            ensemble(encoder_outputs=encoded, attention_mask=MASK, decoder_input_ids=TARGET)
    with pytest.raises(ValueError, match="copy_ids"):
        ensemble(**INPUTS, decoder_input_ids=TARGET, copy_ids=INPUTS["input_ids"])
    with pytest.raises(ValueError, match="load_ensemble"):
        ensemble.save_pretrained("nowhere")
    recurrent = EnsembleForConditionalGeneration([make("gru")])
    full = recurrent(**INPUTS, decoder_input_ids=TARGET, use_cache=True).cache
    with pytest.raises(ValueError, match="cannot be cropped"):
        full.crop(1)
    with pytest.raises(ValueError, match="eager"):
        EnsembleForConditionalGeneration([make("t5")])(**INPUTS, decoder_input_ids=TARGET, output_attentions=True)


def test_an_empty_cache_made_by_hand(ensemble):
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    found = ensemble(**INPUTS, decoder_input_ids=TARGET, cache=cache)
    assert cache.get_seq_length() == 5
    torch.testing.assert_close(found.logits, ensemble(**INPUTS, decoder_input_ids=TARGET).logits, **CLOSE)


# --- pointer-generators --------------------------------------------------------------------------------------------


def make_pointer(seed, unk_token_id=3, vocab_size=13):
    """Likes to copy."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": vocab_size, "hidden_size": 12, "num_hidden_layers": 1, "attention_type": "additive"}
    config = LstmConfig(**sizes, pointer_generator=True, coverage=seed == 1, unk_token_id=unk_token_id)
    model = stir(AutoModelForSeq2SeqLM.from_config(config))
    model.pointer.gate.bias.data -= 2.0
    return model


@pytest.mark.parametrize("mode", MODES)
def test_pointer_generators_copy_together(mode):
    members = [make_pointer(0), make_pointer(1)]
    ensemble = EnsembleForConditionalGeneration(members)
    copy_ids = INPUTS["input_ids"].clone()
    copy_ids[:, 0], copy_ids[:, 5] = 13, 14
    inputs = INPUTS | {"copy_ids": copy_ids}
    found = generate(ensemble, inputs, **MODES[mode])
    assert (found.sequences >= 13).any() and (found.sequences < 13).any()
    assert_same(found, generate(ensemble, inputs, **MODES[mode], use_cache=False))
    target = found.sequences[:4, :-1]
    rows = [member(**inputs, decoder_input_ids=target).logits.softmax(-1) for member in members]
    logits = ensemble(**inputs, decoder_input_ids=target).logits
    torch.testing.assert_close(logits, (sum(rows) / 2).log(), **CLOSE)
    assert logits.shape[-1] == 13 + 6 and ensemble(**INPUTS, decoder_input_ids=TARGET).logits.shape[-1] == 13
    twice = EnsembleForConditionalGeneration([members[0]] * 2)
    assert_same(generate(twice, inputs, **MODES[mode]), generate(members[0], inputs, **MODES[mode]))


@pytest.mark.parametrize("other,trait", [("lstm", "pointer_generator is True"), (None, "unk_token_id is 3")])
def test_pointer_generators_are_not_mixed_with_others(other, trait):
    models = [make_pointer(0), make("lstm") if other else make_pointer(1, unk_token_id=4)]
    with pytest.raises(
        InputError, match=rf"model 0 \(Lstm.*\) and model 1 \(Lstm.*\) cannot predict together: {trait}"
    ):
        EnsembleForConditionalGeneration(models)


# --- classifiers ---------------------------------------------------------------------------------------------------

PROBLEMS = {
    "single_label_classification": lambda logits: logits.softmax(-1),
    "multi_label_classification": lambda logits: logits.sigmoid(),
    "regression": lambda logits: logits,
    None: lambda logits: logits.softmax(-1),
}
NAMES = {0: "bad", 1: "good", 2: "so-so"}


def make_classifier(family, seed, vocab_size=13, **fields):
    torch.manual_seed(seed)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": vocab_size, "pad_token_id": 0}
    bert = {"num_attention_heads": 2, "intermediate_size": 8}
    config = (
        BertConfig(**small, **bert) if family == "bert" else {"lstm": LstmConfig, "cnn": CnnConfig}[family](**small)
    )
    for name, value in ({"id2label": NAMES} | fields).items():
        setattr(config, name, value)
    return stir(AutoModelForSequenceClassification.from_config(config), scale=2.0)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_classifiers_give_mean_probabilities(problem):
    members = [
        make_classifier(family, seed, problem_type=problem) for seed, family in enumerate(("lstm", "cnn", "bert"))
    ]
    ensemble = EnsembleForSequenceClassification(members)
    apply = PROBLEMS[problem]
    expected = sum(apply(member(**INPUTS).logits) for member in members) / 3
    assert (expected - apply(members[0](**INPUTS).logits)).abs().max() > 0.1
    torch.testing.assert_close(apply(ensemble(**INPUTS).logits), expected, rtol=0, atol=1e-6)
    assert ensemble.config.problem_type == problem or problem is None
    segments = torch.ones_like(MASK)  # changes what the third says
    expected = sum(apply(member(**INPUTS, token_type_ids=segments).logits) for member in members) / 3
    found = apply(ensemble(**INPUTS, token_type_ids=segments).logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(found, apply(ensemble(**INPUTS).logits))
    mean = apply(ensemble(**INPUTS).logits)
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    if problem == "regression":
        labels, loss = targets, (mean - targets).square().mean()
    elif problem == "multi_label_classification":
        labels, loss = targets, -(targets * mean + (1 - targets) * (1 - mean)).log().mean()
    else:
        labels = torch.tensor([0, 2, 1, 0])
        loss = -mean[range(4), labels].log().mean()
    torch.testing.assert_close(ensemble(**INPUTS, labels=labels).loss, loss)


# --- loading and pipelines -----------------------------------------------------------------------------------------

TEXTS = ["the cat sat on the mat", "a dog", "where is the house of the cat?", "yes"]


@pytest.fixture(scope="module")
def tokenizer():
    # generate() tries its stop strings on a text "abcdef", so the tokenizer must know the letters.
    return train_tokenizer([*TEXTS, "abcdef"], model="character", vocab_size=60)


def test_trainers_evaluate_an_ensemble(tokenizer, tmp_path):
    args = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    texts, labels = [tokenizer(text)["input_ids"] for text in TEXTS], [[5, 6, EOS], [7, EOS], [8, 9, 5, EOS], [EOS]]
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(texts, labels, strict=True)]
    ensemble = EnsembleForConditionalGeneration([make(family, len(tokenizer)) for family in ("lstm", "t5")])
    collator = DataCollatorForSeq2Seq(tokenizer, model=ensemble)
    trainer = GenerationTrainer(
        model=ensemble,
        args=Seq2SeqTrainingArguments(**args, predict_with_generate=True, generation_max_length=9),
        data_collator=collator,
        processing_class=tokenizer,
    )
    output = trainer.predict(rows, num_beams=2)
    batch = collator([dict(row) for row in rows])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    expected = ensemble.generate(**inputs, num_beams=2, max_length=9)
    assert output.predictions[:, : expected.shape[1]].tolist() == expected.tolist()
    assert output.metrics["test_loss"] == pytest.approx(ensemble(**batch).loss.item(), abs=1e-5)
    classifier = EnsembleForSequenceClassification([make_classifier(f, 0, len(tokenizer)) for f in ("lstm", "cnn")])
    rows = [{"input_ids": ids, "labels": label} for ids, label in zip(texts, [0, 1, 2, 0], strict=True)]
    trainer = Trainer(model=classifier, args=TrainingArguments(**args), processing_class=tokenizer)
    expected = classifier(**inputs, labels=torch.tensor([0, 1, 2, 0]))
    output = trainer.predict(rows)
    torch.testing.assert_close(torch.tensor(output.predictions), expected.logits, **CLOSE)
    assert output.metrics["test_loss"] == pytest.approx(expected.loss.item(), abs=1e-5)


def save(path, model, tokenizer):
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_the_translation_pipeline_takes_a_loaded_ensemble(tokenizer, tmp_path):
    models = [make(family, len(tokenizer)) for family in ("lstm", "cnn", "t5")]
    names = [save(tmp_path / str(index), model, tokenizer) for index, model in enumerate(models)]
    ensemble, loaded = load_ensemble(names, AutoModelForSeq2SeqLM)
    pipe = pipeline("translation", model=ensemble, tokenizer=loaded, device="cpu", num_beams=3, max_new_tokens=8)
    expected = []
    for text in TEXTS:
        sequences = EnsembleForConditionalGeneration(models).generate(
            **tokenizer(text, return_tensors="pt"), num_beams=3, max_new_tokens=8
        )
        expected.append({"translation_text": tokenizer.decode(sequences[0], skip_special_tokens=True)})
    assert pipe(TEXTS) == pipe(TEXTS, batch_size=3) == expected
    assert len({result["translation_text"] for result in expected}) > 2
    one, _ = load_ensemble(names[:1], AutoModelForSeq2SeqLM)
    assert generate(one).sequences.tolist() == generate(models[0]).sequences.tolist()


def test_the_text_classification_pipeline_shows_class_names(tokenizer, tmp_path, caplog):
    models = [make_classifier(family, seed, len(tokenizer)) for seed, family in enumerate(("lstm", "cnn"))]
    names = [save(tmp_path / str(index), model, tokenizer) for index, model in enumerate(models)]
    ensemble, loaded = load_ensemble(names, AutoModelForSequenceClassification)
    with caplog.at_level(logging.ERROR):
        logging.getLogger("transformers").propagate = True
        pipe = pipeline("text-classification", model=ensemble, tokenizer=loaded, device="cpu", top_k=None)
        logging.getLogger("transformers").propagate = False
    assert "not supported" not in caplog.text
    for text, result in zip(TEXTS, pipe(TEXTS), strict=True):
        mean = sum(model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1) for model in models) / 2
        assert [one["label"] for one in result] == [NAMES[index] for index in mean.argsort(descending=True).tolist()]
        assert [one["score"] for one in result] == pytest.approx(mean.sort(descending=True).values.tolist(), abs=1e-5)


def other_start(model):
    model.generation_config.decoder_start_token_id = 0
    return model


@pytest.mark.parametrize(
    "texts,options,ids,message",
    [
        (
            [*TEXTS, "abcdef"],
            {},
            {"decoder_start_token_id": 0},
            "decoder_start_token_id is 1 in the first, 0 in the second",
        ),
        (TEXTS[:1], {}, {}, "vocab_size is"),
        ([text.replace("h", "k") for text in [*TEXTS, "abcdef"]], {}, {}, "the id of token '▁?[hk]' is"),
        ([*TEXTS, "abcdef"], {"lowercase": True}, {}, "the tokenizer's normalizer is"),
    ],
    ids=["start", "sizes", "tokens", "normalizer"],
)
def test_members_that_differ_are_refused(texts, options, ids, message, tokenizer, tmp_path):
    other = train_tokenizer(texts, model="character", vocab_size=60, **options)
    models = [make("gru", len(tokenizer)), make("lstm", len(other))]
    models[1].generation_config.update(**ids)
    names = [save(tmp_path / "a", models[0], tokenizer), save(tmp_path / "b", models[1], other)]
    with pytest.raises(InputError, match=f"^{names[0]} and {names[1]} cannot predict together: {message}") as caught:
        load_ensemble(names, AutoModelForSeq2SeqLM)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"id2label": {0: "bad", 1: "so-so", 2: "good"}}, "id2label"),
        ({"id2label": {0: "bad", 1: "good"}}, "num_labels is 3 in the first, 2 in the second"),
        ({"problem_type": "multi_label_classification"}, "problem_type is 'single_label"),
    ],
)
def test_classifiers_that_differ_are_refused(fields, message):
    models = [make_classifier("lstm", 0), make_classifier("cnn", 0, **fields)]
    with pytest.raises(InputError, match=message):
        EnsembleForSequenceClassification(models)


def test_an_end_and_a_list_of_it_are_the_same():
    models = [make("gru", 20), make("lstm", 20)]
    end = models[0].generation_config.eos_token_id
    models[1].generation_config.eos_token_id = [end]
    EnsembleForConditionalGeneration(models)
    models[1].generation_config.eos_token_id = [end, 5]
    with pytest.raises(InputError, match=rf"eos_token_id is {end} in the first, \[{end}, 5\] in the second"):
        EnsembleForConditionalGeneration(models)


def test_names_that_make_no_ensemble(tokenizer, tmp_path):
    name = save(tmp_path / "model", make("gru", len(tokenizer)), tokenizer)
    with pytest.raises(InputError, match="at least one"):
        load_ensemble([], AutoModelForSeq2SeqLM)
    with pytest.raises(InputError, match="nowhere"):
        load_ensemble([name, "nowhere"], AutoModelForSeq2SeqLM)
    with pytest.raises(
        InputError, match="model: GruForConditionalGeneration was not trained as a sequence classifier"
    ):
        load_ensemble([name], AutoModelForSequenceClassification)
