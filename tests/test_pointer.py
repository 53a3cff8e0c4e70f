"""Pointer-generator and coverage (See et al. 2017): equal to unrolled rows, trained, generated from, saved, loaded."""

import pytest
import test_bundle
import torch
import transformers
from oracles import point_row, search_row
from processes import run_elsewhere
from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutput

from hfseq import CnnConfig, GruConfig, LstmConfig, LstmForCausalLM, LstmForConditionalGeneration, RnnConfig
from hfseq.models import MODEL_CLASSES
from hfseq.models.cache import RecurrentCacheLayer
from hfseq.models.pointer import mix

SEQ2SEQ = {config: MODEL_CLASSES[config]["AutoModelForSeq2SeqLM"] for config in (RnnConfig, LstmConfig, GruConfig)}
FAMILIES = [pytest.param(model_class, id=config.family) for config, model_class in SEQ2SEQ.items()]
TINY = {"vocab_size": 11, "hidden_size": 8, "embedding_size": 6, "num_hidden_layers": 2, "dropout": 0.0}
COVER = {"coverage": True, "attention_type": "additive", "coverage_loss_weight": 0.7}
FIELDS = {
    "pointer": {},
    "covering": COVER,
    "covering_fed": COVER | {"input_feeding": True, "decoder_layers": 1},
    "dot_fed_untied": {"attention_type": "dot", "input_feeding": True, "tie_word_embeddings": False},
}
V, UNK, EOS = 11, 3, 2
# As in the other tests of models: left, right and gapped padding, a full row, a row of one step.
MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0]])
TARGET_MASK = MASK[[4, 2, 0, 1, 3]]
# Words of the rows, none of them at padding; a letter is a word that is not in the vocabulary.
SOURCES = [[5, "a", 5], ["a", "b", "a"], [4, 4, 9], [7, "a", "b", 7, "b"], ["a"]]


def make(model_class, scale=0.8, **fields):
    """A model in float64 whose weights are so large that nothing is small by chance."""
    fields = {"pointer_generator": True, "unk_token_id": UNK} | fields
    model = model_class(model_class.config_class(**TINY | fields)).double().eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-scale, scale)
    return model


def row_ids(words):
    """A row's `input_ids` and `copy_ids`: an unknown word is copied by the number of its first place."""
    ids = [UNK if isinstance(word, str) else word for word in words]
    return ids, [V + words.index(word) if isinstance(word, str) else word for word in words]


def make_source(mask=MASK):
    """Padded sources; at padding stands anything."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, V, mask.shape, generator=generator)
    copy_ids = torch.randint(0, V + mask.shape[1], mask.shape, generator=generator)
    for row, words in enumerate(SOURCES[: len(mask)]):
        valid = mask[row].bool()
        ids[row, valid], copy_ids[row, valid] = (torch.tensor(values) for values in row_ids(words))
    return {"input_ids": ids, "attention_mask": mask, "copy_ids": copy_ids}


def make_target():
    """Decoder inputs with ids beyond the vocabulary, and labels of which some are to be copied."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, V + 5, TARGET_MASK.shape, generator=generator)
    labels = torch.randint(0, V, TARGET_MASK.shape, generator=generator)
    for row, words in enumerate(SOURCES):
        labels[row, ::2] = torch.tensor(row_ids(words)[1][-1])
    return ids, labels.masked_fill(TARGET_MASK == 0, -100)


def alone(row, copied):
    """Source, target and what is copied of a row, as lists without padding."""
    ids, copy_ids = row_ids(SOURCES[row])
    return ids, make_target()[0][row, TARGET_MASK[row].bool()].tolist(), copy_ids if copied else ids


# --- against rows unrolled -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [True, False], ids=["copy_ids", "input_ids"])
@pytest.mark.parametrize("fields", FIELDS.values(), ids=list(FIELDS))
@pytest.mark.parametrize("model_class", FAMILIES)
def test_equals_the_unrolled_rows(model_class, fields, copied):
    """Probabilities, the loss of training and of evaluation, and all gradients, whatever the padding."""
    model = make(model_class, **fields)
    source, (ids, labels) = make_source(), make_target()
    if not copied:
        del source["copy_ids"]
        labels = labels.masked_fill(labels >= V, UNK)
    inputs = source | {"decoder_input_ids": ids, "decoder_attention_mask": TARGET_MASK}
    logits = model(**inputs).logits
    size = V + MASK.shape[1] * copied
    assert logits.shape == (5, 5, size) and logits.isfinite().all()
    torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(5, 5).double())
    nll = overlap = 0
    for row, valid in enumerate(TARGET_MASK.bool()):
        row_source, target, copy_ids = alone(row, copied)
        probabilities, overlaps = point_row(model, row_source, target, copy_ids, size)
        torch.testing.assert_close(logits[row, valid].exp(), probabilities)
        for step, label in enumerate(labels[row, valid].tolist()):
            nll = nll - probabilities[step, label].log()
            overlap = overlap + overlaps[step]
    count = (labels != -100).sum()
    penalty = 0.7 * overlap if "coverage" in fields else 0.0
    torch.testing.assert_close(model(**inputs, labels=labels).loss, (nll / count).float())
    model.train()
    for given, number in (({}, count), ({"num_items_in_batch": 31}, 31)):
        found, expected = model(**inputs, labels=labels, **given).loss, (nll + penalty) / number
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.autograd.grad(found, parameters), expected, rtol=1e-5, atol=1e-6)
    assert all(gradient.any() for gradient in expected)


def test_coverage_without_a_pointer():
    """Its loss is there, its logits are those of no coverage where the coverage weighs nothing."""
    model, plain = (
        make(LstmForConditionalGeneration, pointer_generator=False, **fields)
        for fields in (COVER, {"attention_type": "additive"})
    )
    missing, _ = model.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["decoder.attention.coverage.weight"]
    torch.nn.init.zeros_(model.decoder.attention.coverage.weight)
    inputs = {name: value for name, value in make_source().items() if name != "copy_ids"}
    inputs["labels"] = torch.full((5, 4), 6)
    found, expected = model(**inputs), plain(**inputs, output_attentions=True)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)
    weights = expected.cross_attentions[0][:, 0]
    overlaps = torch.minimum(weights, weights.cumsum(1) - weights).sum()
    torch.testing.assert_close(model.train()(**inputs).loss, expected.loss + 0.7 * overlaps / 20)


@pytest.mark.parametrize("model_class", FAMILIES)
def test_padding_changes_nothing_in_float32_at_default_sizes(model_class):
    torch.manual_seed(0)
    config = model_class.config_class(vocab_size=V, pointer_generator=True, unk_token_id=UNK, **COVER)
    model = model_class(config).eval()
    source, (ids, _) = make_source(), make_target()
    logits = model(**source, decoder_input_ids=ids, decoder_attention_mask=TARGET_MASK).logits
    for row, valid in enumerate(TARGET_MASK.bool()):
        row_source, target, copy_ids = (torch.tensor([values]) for values in alone(row, True))
        expected = model(input_ids=row_source, copy_ids=copy_ids, decoder_input_ids=target).logits[0]
        torch.testing.assert_close(logits[row, valid, : expected.shape[-1]], expected, rtol=1e-5, atol=1e-5)


def test_a_word_that_is_all_but_impossible_has_a_gradient():
    """Where its probability is no number of float32 any more, and where nothing is to be copied at all."""
    logits = torch.tensor([[[0.0, -300.0, 0.0]]], requires_grad=True)
    gate = torch.tensor([[[200.0]]], requires_grad=True)
    weights = torch.tensor([[[1.0, 0.0]]])
    result = mix(logits, gate, weights, torch.tensor([[0, 4]]), extended=True)
    assert result.shape == (1, 1, 5) and result.isfinite().all()
    torch.testing.assert_close(result[0, 0, 1].item(), -300.0 - torch.tensor(2.0).log().item())
    result.sum().backward()
    assert logits.grad.isfinite().all() and gate.grad.isfinite().all()
    assert logits.grad[0, 0, 1] > 0.9


@pytest.mark.processor
@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_the_mixture_is_in_float32(how):
    model = make(LstmForConditionalGeneration, **COVER).float()
    inputs = make_source() | {"decoder_input_ids": make_target()[0]}
    expected = model(**inputs).logits
    if how == "bfloat16":
        logits = model.bfloat16()(**inputs).logits
    else:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.logsumexp(-1), torch.zeros(5, 5), rtol=0, atol=1e-6)
    torch.testing.assert_close(logits.exp(), expected.exp(), rtol=0, atol=0.05)


def test_smoothed_loss_of_the_trainer(tmp_path):
    model = make(LstmForConditionalGeneration, **COVER).train()
    labels = make_target()[1].sort(dim=1, descending=True).values  # the trainer's decoder inputs have no mask
    inputs = make_source() | {
        "labels": labels,
        "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels),
    }
    logits = model(**inputs).logits
    trainer = Trainer(model, TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=[]))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(trainer.compute_loss(model, inputs), expected)


def test_decoder_inputs_made_of_labels():
    model = make(LstmForConditionalGeneration)
    labels = torch.tensor([[4, V + 1, 2], [V, 2, -100]])
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[1, 4, UNK], [1, UNK, 2]]
    source = {name: value[:2] for name, value in make_source().items()}
    expected = model(**source, decoder_input_ids=torch.tensor([[1, 4, UNK], [1, UNK, 2]])).logits
    torch.testing.assert_close(model(**source, labels=labels).logits, expected, rtol=0, atol=0)


# --- generation ----------------------------------------------------------------------------------------------------

MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams_returned": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.3},
    "no_repeat": {"num_beams": 3, "no_repeat_ngram_size": 2},
    "repetition": {"repetition_penalty": 1.7, "bad_words_ids": [[7], [9, 5]]},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
    "beam_sampling": {"do_sample": True, "num_beams": 3, "top_k": 6},
}
NEW = 9


@pytest.fixture(scope="module", params=[(family, name) for family in FAMILIES for name in FIELDS], ids=str)
def generator(request):
    """With weights so large that what is generated varies, and copies of unknown words are among it."""
    family, name = request.param
    return make(family.values[0], scale=2.5, **FIELDS[name])


def generate(model, inputs, **options):
    torch.manual_seed(3)
    defaults = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True}
    return model.generate(**inputs, **defaults | options)


def up_to_eos(sequence):
    tokens = sequence.tolist()
    return tokens[1 : tokens.index(EOS) + 1] if EOS in tokens else tokens[1:]


@pytest.mark.parametrize("mode", MODES)
def test_cached_equals_uncached(generator, mode):
    cached = generate(generator, make_source(), **MODES[mode])
    uncached = generate(generator, make_source(), **MODES[mode], use_cache=False)
    assert cached.cache is not None and uncached.cache is None
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    torch.testing.assert_close(cached.scores, uncached.scores)
    assert cached.scores[0].shape[-1] == V + 5


# How a sequence is searched for does not depend on where the ids of the copied words come from.
@pytest.mark.parametrize(
    ("mode", "copied"),
    [
        *((mode, True) for mode in ("greedy", "beams", "beams_returned", "no_repeat", "repetition")),
        ("beams_returned", False),
    ],
)
def test_a_batch_generates_what_each_row_generates_alone(generator, mode, copied):
    """In rows beside it, of another length, unknown words have the same ids."""
    inputs = make_source()
    if not copied:
        del inputs["copy_ids"]
    together = generate(generator, inputs, **MODES[mode])
    count = MODES[mode].get("num_return_sequences", 1)
    for row in range(5):
        ids, copy_ids = (torch.tensor([values]) for values in row_ids(SOURCES[row]))
        given = {"input_ids": ids} | ({"copy_ids": copy_ids} if copied else {})
        expected = generate(generator, given, **MODES[mode])
        rows = slice(row * count, (row + 1) * count)
        assert [up_to_eos(one) for one in together.sequences[rows]] == [up_to_eos(one) for one in expected.sequences]
        if "sequences_scores" in expected:
            torch.testing.assert_close(together.sequences_scores[rows], expected.sequences_scores)


def test_the_models_of_these_tests_tell_something():
    """They copy unknown words, repeat themselves where nothing forbids it, and differ from row to row."""
    copies = repeats = ended = 0
    for family in FAMILIES:
        for fields in FIELDS.values():
            model = make(family.values[0], scale=2.5, **fields)
            for mode in ("greedy", "beams"):
                rows = [up_to_eos(row) for row in generate(model, make_source(), **MODES[mode]).sequences]
                assert len({tuple(row) for row in rows}) >= 3, rows
                ended += sum(row[-1] == EOS for row in rows)
                copies += sum(token >= V for row in rows for token in row)
                repeats += sum(len(bigrams(row)) > len(set(bigrams(row))) for row in rows)
            for row in generate(model, make_source(), **MODES["no_repeat"]).sequences:
                assert len(bigrams(up_to_eos(row))) == len(set(bigrams(up_to_eos(row))))
            assert V + 1 not in generate(model, make_source(), bad_words_ids=[[V + 1]]).sequences
    assert copies > 200 and repeats > 50 and ended > 20


def bigrams(row):
    return list(zip(row, row[1:], strict=False))


@pytest.mark.parametrize("beams", [1, 3])
def test_generates_what_a_naive_search_finds(generator, beams):
    result = generate(generator, make_source(), num_beams=beams, max_new_tokens=4, min_new_tokens=4)
    for row, words in enumerate(SOURCES):
        ids, copy_ids = row_ids(words)

        def probabilities_after(target, ids=ids, copy_ids=copy_ids):
            probabilities = point_row(generator, ids, target, copy_ids, V + len(ids))[0][-1].detach()
            return probabilities.index_fill(0, torch.tensor(EOS), 0.0)

        score, expected = search_row(probabilities_after, 1, 4, beams)
        assert result.sequences[row].tolist() == expected
        if beams > 1:
            assert result.sequences_scores[row].item() * 4 == pytest.approx(
                score, rel=1e-5, abs=1e-5
            )  # kept in float32


@pytest.mark.parametrize("mode", ["greedy", "beams_returned"])
def test_transition_scores(generator, mode):
    """They add up to the scores of the sequences; transformers' own takes the vocabulary for the width."""
    result = generate(generator, make_source(), **MODES[mode])
    indices = result.get("beam_indices")
    scores = generator.compute_transition_scores(result.sequences, result.scores, indices, normalize_logits=True)
    if mode == "greedy":
        for row, sequence in enumerate(result.sequences):
            for step, token in enumerate(up_to_eos(sequence)):
                torch.testing.assert_close(scores[row, step], result.scores[step][row, token])
        return
    scores = generator.compute_transition_scores(result.sequences, result.scores, indices)
    lengths = (indices >= 0).sum(1)
    torch.testing.assert_close(scores.sum(1).diff(), (result.sequences_scores * lengths**0.3).diff())


def test_transition_scores_as_wide_as_the_vocabulary_are_those_of_transformers(generator):
    source = {name: value for name, value in make_source().items() if name != "copy_ids"}
    for mode in ("greedy", "beams_returned"):
        result = generate(generator, source, **MODES[mode])
        for normalize in (True, False):
            arguments = (result.sequences, result.scores, result.get("beam_indices"), normalize)
            expected = transformers.GenerationMixin.compute_transition_scores(generator, *arguments)
            torch.testing.assert_close(generator.compute_transition_scores(*arguments), expected)


@pytest.mark.parametrize("chunks", [[1] * 5, [2, 2, 1], [1, 4]], ids=str)
def test_steps_with_a_cache_equal_one_call(generator, chunks):
    """With padding anywhere, so that some rows of some chunks are all padding; logits and states."""
    source, ids = make_source(), make_target()[0]
    whole = generator(**source, decoder_input_ids=ids, decoder_attention_mask=TARGET_MASK, use_cache=True)
    cache, logits, begin = None, [], 0
    for size in chunks:
        end = begin + size
        step = {"decoder_input_ids": ids[:, begin:end], "decoder_attention_mask": TARGET_MASK[:, begin:end]}
        outputs = generator(**source, **step, cache=cache, use_cache=True)
        cache, begin = outputs.cache, end
        logits.append(outputs.logits)
    valid = TARGET_MASK.bool()
    torch.testing.assert_close(torch.cat(logits, dim=1)[valid], whole.logits[valid])
    found, expected = (
        [part for layer in one.self_attention_cache.layers for part in layer.states] for one in (cache, whole.cache)
    )
    torch.testing.assert_close(found, expected)
    if generator.config.coverage:
        torch.testing.assert_close(found[-1].sum(1), valid.sum(1).double())
        assert not found[-1][MASK == 0].any()
        # Views would hold on to something larger than they are.
        assert found[-1].untyped_storage().nbytes() == found[-1].nbytes


def test_coverage_is_penalised_after_a_cache():
    """Truncated backpropagation: the second part of a target knows what the first has covered."""
    model = make(LstmForConditionalGeneration, **COVER).train()
    source, (ids, labels) = make_source(), make_target()
    begun = model(**source, decoder_input_ids=ids[:, :3], use_cache=True)
    part = {"decoder_input_ids": ids[:, 3:], "labels": labels[:, 3:].contiguous()}
    found = model(**source, **part, cache=begun.cache).loss
    expected = model(**source, decoder_input_ids=ids, labels=labels.index_fill(1, torch.arange(3), -100)).loss
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_from_what_is_already_encoded(generator, num_beams):
    source = make_source()
    copy_ids, mask = source["copy_ids"], source["attention_mask"]
    plain = {"input_ids": source["input_ids"], "attention_mask": mask}
    expected, expected_plain = (generate(generator, given, num_beams=num_beams) for given in (source, plain))
    embedded = {"inputs_embeds": generator.get_input_embeddings()(source["input_ids"]), "attention_mask": mask}
    # generate() expands the object that it is given
    for given, result in (
        (embedded | {"copy_ids": copy_ids}, expected),
        ({"encoder_outputs": generator.get_encoder()(**plain), "attention_mask": mask}, expected_plain),
        ({"encoder_outputs": generator.get_encoder()(**plain)} | source | {"input_ids": None}, expected),
    ):
        found = generate(generator, given, num_beams=num_beams)
        assert found.sequences.tolist() == result.sequences.tolist()
        torch.testing.assert_close(found.scores, result.scores)
    with pytest.raises(ValueError, match="a pointer-generator copies ids: pass copy_ids where neither"):
        generate(generator, embedded, num_beams=num_beams)


@pytest.mark.parametrize("hidden_states", [True, False])
def test_encoder_outputs_in_place_of_a_source(hidden_states):
    model = make(LstmForConditionalGeneration)
    source, ids = make_source(), make_target()[0]
    copy_ids = source.pop("copy_ids")
    encoded = model.get_encoder()(**source, output_hidden_states=hidden_states)
    expected = model(**source, decoder_input_ids=ids, output_hidden_states=hidden_states)
    given = {"attention_mask": MASK, "decoder_input_ids": ids}
    for outputs in (encoded, encoded.to_tuple(), list(encoded.to_tuple())):
        found = model(encoder_outputs=outputs, **given)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
        torch.testing.assert_close(found.encoder_hidden_states, expected.encoder_hidden_states, rtol=0, atol=0)
    foreign = BaseModelOutput(last_hidden_state=encoded.last_hidden_state)
    found = model(encoder_outputs=foreign, input_ids=source["input_ids"], **given)
    torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0)
    expected = model(**source, copy_ids=copy_ids, decoder_input_ids=ids)
    torch.testing.assert_close(model(encoder_outputs=foreign, copy_ids=copy_ids, **given).logits, expected.logits)
    with pytest.raises(ValueError, match="a pointer-generator copies ids"):
        model(encoder_outputs=foreign, **given)


def test_outputs_are_there_on_demand():
    model = make(LstmForConditionalGeneration, **COVER)
    inputs = make_source() | {"decoder_input_ids": make_target()[0]}
    outputs = model(**inputs)
    assert outputs.cross_attentions is None and outputs.decoder_hidden_states is None
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert outputs.cross_attentions[0].shape == (5, 1, 5, 5) and len(outputs.decoder_hidden_states) == 3


def test_decoder_of_a_transformer_with_coverage():
    """A causal language model has the decoder's attention, so it has the coverage, but no pointer."""
    fields = {"add_cross_attention": True, "cross_attention_hidden_size": 12, "tie_word_embeddings": False}
    decoder = make(LstmForCausalLM, scale=2.5, **fields, **COVER)
    assert not any(name.startswith("pointer") for name in decoder.state_dict())
    bert = transformers.BertConfig(
        vocab_size=V, hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = transformers.EncoderDecoderModel(encoder=transformers.BertModel(bert).double(), decoder=decoder).eval()
    for name, value in {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": EOS}.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    inputs = {name: value for name, value in make_source().items() if name != "copy_ids"}
    cached, uncached = (generate(model, inputs, num_beams=3, use_cache=use_cache) for use_cache in (True, False))
    assert cached.sequences.tolist() == uncached.sequences.tolist() and len(cached.sequences.unique()) > 3
    torch.testing.assert_close(cached.scores, uncached.scores)


# --- saving, loading, changing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_class", FAMILIES)
def test_heads_start_from_each_others_weights(model_class, tmp_path):
    """A pointer is new to what had none, coverage to what was trained without it, as the paper does."""
    plain = make(model_class, pointer_generator=False, unk_token_id=None, attention_type="additive")
    plain.save_pretrained(tmp_path / "plain")
    assert "copy" not in "".join(plain.state_dict())
    load = AutoModelForSeq2SeqLM.from_pretrained
    fields = {"pointer_generator": True, "unk_token_id": UNK}
    pointer, info = load(tmp_path / "plain", **fields, output_loading_info=True)
    gate = {"pointer.gate.weight", "pointer.gate.bias"}
    assert info["missing_keys"] == gate and not info["unexpected_keys"]
    assert pointer.pointer.gate.weight.std() > 0.1 and not pointer.pointer.gate.bias.any()
    assert pointer.state_dict().keys() - plain.state_dict().keys() == gate
    pointer.save_pretrained(tmp_path / "pointer")
    both, info = load(tmp_path / "pointer", coverage=True, output_loading_info=True)
    assert info["missing_keys"] == {"decoder.attention.coverage.weight"} and not info["unexpected_keys"]
    both.save_pretrained(tmp_path / "both")
    again, info = load(tmp_path / "both", output_loading_info=True)
    assert not any(info.values()) and again.config.coverage and again.config.unk_token_id == UNK
    source = make_source()
    torch.testing.assert_close(generate(again, source).sequences, generate(both, source).sequences)
    classifier, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "both", output_loading_info=True)
    assert not info["unexpected_keys"]
    torch.testing.assert_close(classifier.model.state_dict(), both.model.state_dict(), rtol=0, atol=0)


def test_a_checkpoint_carries_its_code(tmp_path):
    """In a process without hfseq it computes the same; see `test_bundle`."""
    for model_class in SEQ2SEQ.values():
        make(model_class, **COVER, vocab_size=40).float().save_pretrained(
            tmp_path / "checkpoints" / model_class.__name__
        )
    expected = test_bundle.load_all(tmp_path / "checkpoints")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [test_bundle.__file__, tmp_path / "checkpoints", tmp_path / "results.pt"]
    done = run_elsewhere(*command, environment=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "results.pt")
    assert list(found) == list(expected) and sum("sequences" in result for result in found.values()) == 3
    for name, result in expected.items():
        torch.testing.assert_close(found[name], result, msg=lambda text, name=name: f"{name}: {text}")


def test_a_resized_vocabulary():
    """What is beyond it begins at its new end."""
    model = make(LstmForConditionalGeneration, **COVER)
    source, ids = make_source(), make_target()[0]
    with torch.no_grad():
        before = model(**source, decoder_input_ids=ids.masked_fill(ids >= V, UNK)).logits
    model.resize_token_embeddings(V + 9)
    source["copy_ids"] = source["copy_ids"] + 9 * (source["copy_ids"] >= V)
    after = model(**source, decoder_input_ids=ids + 9 * (ids >= V)).logits
    assert after.shape[-1] == V + 9 + 5
    # The new words have a share of what is written, none of what is copied.
    row_source, target, copy_ids = alone(3, True)
    copy_ids = [word + 9 * (word >= V) for word in copy_ids]
    expected, _ = point_row(model, row_source, [word + 9 * (word >= V) for word in target], copy_ids, V + 14)
    torch.testing.assert_close(after[3, TARGET_MASK[3].bool()].exp(), expected)
    torch.testing.assert_close(after[..., V + 9 :], before[..., V:])
    labels = torch.full((5, 2), V + 9)
    assert model.prepare_decoder_input_ids_from_labels(labels).tolist() == [[1, UNK]] * 5
    model(**source, labels=labels).loss.backward()


def test_low_rank_adapters():
    peft = pytest.importorskip("peft")
    model = make(LstmForConditionalGeneration, **COVER)
    inputs = make_source() | {"labels": make_target()[1].clamp(min=0)}
    expected = model(**inputs).logits
    targets = ["gate", "attention.query", "attention.coverage"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, task_type="SEQ_2_SEQ_LM"))
    torch.testing.assert_close(adapted.eval()(**inputs).logits, expected)
    adapted.train()(**inputs).loss.backward()
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 6 and all("lora" in name for name in trained)
    source = make_source()
    assert adapted.eval().generate(**source, max_new_tokens=4).shape == (5, 5)


# --- errors --------------------------------------------------------------------------------------------------------


def test_impossible_configs():
    for kind in ("dot", "general"):
        with pytest.raises(
            ValueError, match=f"coverage=True is impossible, it needs attention_type='additive'.*{kind}"
        ):
            GruConfig(coverage=True, attention_type=kind)
    with pytest.raises(ValueError, match="coverage_loss_weight=-1 is impossible, it must not be negative"):
        GruConfig(coverage_loss_weight=-1)
    config = LstmConfig(**TINY, **COVER)
    config.attention_type = "general"
    with pytest.raises(ValueError, match="coverage=True needs attention_type='additive', not 'general'"):
        LstmForConditionalGeneration(config)


def test_wrong_copies():
    inputs = make_source() | {"decoder_input_ids": make_target()[0].clamp(max=V - 1)}
    model = make(LstmForConditionalGeneration)
    for shape in ((5, 4), (4, 5), (5,)):
        with pytest.raises(ValueError, match=r"the ids to copy have shape .*, expected \(5, 5\)"):
            model(**inputs | {"copy_ids": torch.ones(shape).long()})
    model.config.unk_token_id = None
    with pytest.raises(ValueError, match="copy_ids need a config with unk_token_id"):
        model(**inputs)
    cnn = MODEL_CLASSES[CnnConfig]["AutoModelForSeq2SeqLM"](CnnConfig(**TINY))
    for plain in (make(LstmForConditionalGeneration, pointer_generator=False), cnn):
        with pytest.raises(ValueError, match="copy_ids were passed to a model without pointer_generator=True"):
            plain(**inputs)


def test_a_cache_of_a_model_without_coverage():
    one, other = (
        make(LstmForConditionalGeneration, attention_type="additive"),
        make(LstmForConditionalGeneration, **COVER),
    )
    source, ids = make_source(), torch.ones(5, 1).long()
    for writer, reader in ((one, other), (other, one)):
        cache = writer(**source, decoder_input_ids=ids, use_cache=True).cache
        assert isinstance(cache.self_attention_cache.layers[0], RecurrentCacheLayer)
        with pytest.raises(ValueError, match="cache: layer 1 holds .* belongs to another model or batch"):
            reader(**source, decoder_input_ids=ids, cache=cache)
