"""Decoding: cached equals uncached in every mode, and a padded batch generates what each row generates alone."""

import copy
import dataclasses
import inspect
from functools import partial

import pytest
import torch
from token_classes import LINEAR, MODEL_CLASSES
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, StaticCache
from transformers.generation import GenerationMixin
from transformers.generation.configuration_utils import ALL_CACHE_IMPLEMENTATIONS
from transformers.generation.streamers import BaseStreamer

from hfseq import GruConfig, LstmConfig
from hfseq.models import generation
from hfseq.models.cache import RecurrentCacheLayer

pytestmark = pytest.mark.contract

EOS = 2
# Sources and left-padded prompts of uneven length.
MASK = torch.tensor([[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]])
SOURCE_MASK = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1]])
KINDS = {
    "lm": ("AutoModelForCausalLM", {}),
    "lm_untied": ("AutoModelForCausalLM", {"tie_word_embeddings": False, "num_hidden_layers": 1}),
    "seq2seq": ("AutoModelForSeq2SeqLM", {"attention_type": "additive", "encoder_layers": 1}),
    "seq2seq_fed": ("AutoModelForSeq2SeqLM", {"input_feeding": True, "decoder_layers": 3}),
}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams_returned": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.3},
    "beams_long": {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
    "beams_constrained": {"num_beams": 3, "no_repeat_ngram_size": 2, "early_stopping": "never"},
    "sampling": {"do_sample": True, "num_return_sequences": 2, "top_k": 0},
    "beam_sampling": {"do_sample": True, "num_beams": 3, "top_k": 6},
}
NEW = 14


def make(config_class, kind):
    """A model in float64 whose weights are so large that what it generates varies and some rows end early."""
    auto, fields = STEPPING[kind]
    torch.manual_seed(5)  # one with which they all do
    tiny = {"vocab_size": 13, "hidden_size": 12, "embedding_size": 10, "num_hidden_layers": 2}
    model = MODEL_CLASSES[config_class][auto](config_class(**tiny | fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-2.0, 2.0)
    return model


def kinds_of(config_class, kinds):
    """Those of the kinds that a family does not refuse."""
    return [kind for kind in kinds if not (config_class.family in LINEAR and kind == "seq2seq_fed")]


@pytest.fixture(
    scope="module", params=[(config, kind) for config in MODEL_CLASSES for kind in kinds_of(config, KINDS)], ids=str
)
def model(request):
    return make(*request.param)


@pytest.fixture(scope="module", params=list(MODEL_CLASSES), ids=lambda config: config.__name__)
def lm(request):
    return make(request.param, "lm")


def is_lm(model):
    return not model.config.is_encoder_decoder


def make_inputs(model):
    ids = torch.randint(3, 13, MASK.shape, generator=torch.Generator().manual_seed(5))
    return {"input_ids": ids, "attention_mask": MASK if is_lm(model) else SOURCE_MASK}


def generate(model, inputs, **options):
    torch.manual_seed(3)
    defaults = {"max_new_tokens": NEW, "return_dict_in_generate": True, "output_scores": True}
    return model.generate(**inputs, **defaults | options)


def rows_alone(inputs):
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        yield {"input_ids": inputs["input_ids"][row : row + 1, mask]}


def up_to_eos(sequence):
    tokens = sequence.tolist()
    return tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens


def new_tokens(model, inputs, sequences):
    return sequences[:, inputs["input_ids"].shape[1] if is_lm(model) else 1 :]


def assert_same_generation(one, other):
    assert one.sequences.tolist() == other.sequences.tolist()
    torch.testing.assert_close(one.scores, other.scores)
    if "sequences_scores" in one:
        torch.testing.assert_close(one.sequences_scores, other.sequences_scores)


# --- generate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_cached_equals_uncached(model, mode):
    inputs = make_inputs(model)
    cached = generate(model, inputs, **MODES[mode], use_cache=True)
    uncached = generate(model, inputs, **MODES[mode], use_cache=False)
    assert cached.cache is not None and uncached.cache is None
    assert_same_generation(cached, uncached)


def test_the_models_of_these_tests_tell_something():
    """What they generate varies along a sequence and between rows; some rows end, others do not."""
    ended = total = 0
    for config_class in MODEL_CLASSES:
        for kind in kinds_of(config_class, KINDS):
            model = make(config_class, kind)
            inputs = make_inputs(model)
            for mode in ("greedy", "beams"):
                sequences = generate(model, inputs, **MODES[mode]).sequences
                rows = [up_to_eos(row) for row in new_tokens(model, inputs, sequences)]
                assert len({tuple(row) for row in rows}) >= 3, (config_class, kind, mode, rows)
                assert len({token for row in rows for token in row}) >= 4, (config_class, kind, mode, rows)
                ended += sum(row[-1] == EOS for row in rows)
                total += len(rows)
    assert 0.1 < ended / total < 0.9, (ended, total)


@pytest.mark.parametrize("mode", ["greedy", "beams", "beams_returned", "beams_long"])
def test_a_batch_generates_what_each_row_generates_alone(model, mode):
    inputs = make_inputs(model)
    together = generate(model, inputs, **MODES[mode])
    count = MODES[mode].get("num_return_sequences", 1)
    found = [up_to_eos(row) for row in new_tokens(model, inputs, together.sequences)]
    for row, alone in enumerate(rows_alone(inputs)):
        expected = generate(model, alone, **MODES[mode])
        rows = slice(row * count, (row + 1) * count)
        assert found[rows] == [up_to_eos(one) for one in new_tokens(model, alone, expected.sequences)]
        if "sequences_scores" in expected:
            torch.testing.assert_close(together.sequences_scores[rows], expected.sequences_scores)


def test_several_returned_sequences_are_those_of_repeated_rows(model):
    inputs = make_inputs(model)
    options = {"do_sample": True, "top_k": 0}
    repeated = {name: value.repeat_interleave(3, dim=0) for name, value in inputs.items()}
    one = generate(model, inputs, **options, num_return_sequences=3)
    assert_same_generation(one, generate(model, repeated, **options))


def test_a_streamer_gets_the_same_tokens(model):
    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens, self.ended = [], False

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Collect()
    alone = list(rows_alone(make_inputs(model)))[2]
    result = generate(model, alone, streamer=streamer)
    assert streamer.ended and streamer.tokens == result.sequences[0].tolist()


def test_generation_goes_on_from_a_returned_cache(model):
    inputs = make_inputs(model)
    options = {"eos_token_id": None, "pad_token_id": 0}
    whole = generate(model, inputs, max_new_tokens=9, **options)
    begun = generate(model, inputs, max_new_tokens=4, **options)
    if is_lm(model):
        mask = torch.cat([inputs["attention_mask"], torch.ones(4, 4).long()], dim=1)
        more = {"input_ids": begun.sequences, "attention_mask": mask}
    else:
        # with a mask of all steps generate() knows that the ids are all too
        more = inputs | {"decoder_input_ids": begun.sequences, "decoder_attention_mask": torch.ones(4, 5).long()}
    seen = begun.cache.get_seq_length()
    assert seen == begun.sequences.shape[1] - 1
    continued = generate(model, more, max_new_tokens=5, cache=begun.cache, **options)
    assert continued.sequences.tolist() == whole.sequences.tolist()
    torch.testing.assert_close(continued.scores, whole.scores[4:])
    assert continued.cache.get_seq_length() == seen + 5


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 4, 6, 50])
def test_chunked_prefill(lm, size, num_beams):
    """In chunks of 2 a row begins with chunks that are all padding."""
    inputs = make_inputs(lm)
    expected = generate(lm, inputs, num_beams=num_beams)
    assert_same_generation(generate(lm, inputs, num_beams=num_beams, prefill_chunk_size=size), expected)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generation_from_embeddings(model, num_beams):
    inputs = make_inputs(model)
    expected = generate(model, inputs, num_beams=num_beams)
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]),
        "attention_mask": inputs["attention_mask"],
    }
    found = generate(model, embedded, num_beams=num_beams)
    torch.testing.assert_close(found.scores, expected.scores)
    new = expected.sequences[:, inputs["input_ids"].shape[1] :] if is_lm(model) else expected.sequences
    assert found.sequences.tolist() == new.tolist()


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize(
    ("config_class", "kind"),
    [(config, kind) for config in MODEL_CLASSES for kind in kinds_of(config, ["seq2seq", "seq2seq_fed"])],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_generation_from_encoder_outputs(config_class, kind, num_beams):
    model = make(config_class, kind)
    inputs = make_inputs(model)
    encoder = model.get_encoder()
    # generate() expands the object that it is given
    given = {"encoder_outputs": encoder(**inputs), "attention_mask": inputs["attention_mask"]}
    assert_same_generation(generate(model, given, num_beams=num_beams), generate(model, inputs, num_beams=num_beams))
    encoded = encoder(**inputs)
    ids = torch.tensor([[1, 5, 7]] * 4)
    expected = model(**inputs, decoder_input_ids=ids).logits
    for outputs in (encoded, encoded.to_tuple(), list(encoded.to_tuple())):
        logits = model(encoder_outputs=outputs, attention_mask=SOURCE_MASK, decoder_input_ids=ids).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=0)


def test_alignments_of_generated_tokens(model):
    if is_lm(model):
        assert generate(model, make_inputs(model), output_attentions=True).attentions[0] is None
        return
    inputs = make_inputs(model)
    result = generate(model, inputs, output_attentions=True)
    full = model(**inputs, decoder_input_ids=result.sequences[:, :-1], output_attentions=True).cross_attentions[0]
    # generate() keeps one tuple of layers for each step
    torch.testing.assert_close(torch.cat([step[0] for step in result.cross_attentions], dim=2), full)


# --- one token after the other, without `generate`'s own loop ------------------------------------------------------

STEPPING = KINDS | {
    "lm_adaptive": ("AutoModelForCausalLM", {"adaptive_softmax_cutoffs": [4, 8]}),
    "seq2seq_covered": ("AutoModelForSeq2SeqLM", {"attention_type": "additive", "coverage": True, "layer_norm": True}),
}
SETTINGS = {
    "greedy": {},
    "sampled": {"do_sample": True, "top_k": 0, "num_return_sequences": 2},
    "warped": {"do_sample": True, "top_k": 5, "temperature": 0.7},
    "processed": {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "min_new_tokens": 4},
    "several_ends": {"eos_token_id": [EOS, 5]},
    "no_end": {"eos_token_id": None},
    "criteria": {"stopping_criteria": [lambda ids, scores, **kwargs: ids[:, -1] > 9]},
    "criteria_alone": {"eos_token_id": None, "stopping_criteria": [lambda ids, scores, **kwargs: ids[:, -1] > 9]},
    "one_step": {"max_new_tokens": 1},
}


@pytest.fixture
def decoded(monkeypatch):
    """Each call of `decode`."""
    calls, decode = [], generation.decode

    def recorded(*args, **kwargs):
        calls.append(args)
        return decode(*args, **kwargs)

    monkeypatch.setattr(generation, "decode", recorded)
    return calls


class Tokens(BaseStreamer):
    def __init__(self):
        self.got = []

    def put(self, value):
        self.got.append(value.tolist())

    def end(self):
        self.got.append("end")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("config_class", "kind"),
    [(config, kind) for config in MODEL_CLASSES for kind in kinds_of(config, STEPPING)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_decoding_without_the_loop_of_generate_gives_what_the_loop_gives(config_class, kind, setting, decoded):
    model = make(config_class, kind)
    inputs = make_inputs(model)
    found = []
    for function in (model.generate, partial(GenerationMixin.generate, model)):
        streamer = Tokens()
        torch.manual_seed(3)
        options = {"max_new_tokens": NEW, "streamer": streamer} | SETTINGS[setting]
        found.append((function(**inputs, **options).tolist(), streamer.got))
    assert found[0] == found[1]
    assert len(decoded) == 1


def test_encoder_outputs_as_a_tuple(decoded):
    model = make(GruConfig, "seq2seq")
    (row, *_) = rows_alone(make_inputs(model))
    states = (model.get_encoder()(**row).last_hidden_state,)
    expected = GenerationMixin.generate(model, encoder_outputs=states, max_new_tokens=NEW)
    assert model.generate(encoder_outputs=states, max_new_tokens=NEW).tolist() == expected.tolist()
    assert len(decoded) == 1


@pytest.mark.parametrize("hidden_states", [False, True])
@pytest.mark.parametrize("config_class", MODEL_CLASSES, ids=lambda config: config.__name__)
def test_encoder_outputs_as_a_tuple_of_what_there_is(config_class, hidden_states):
    """As an encoder returns it with `return_dict=False`: without the fields that are None."""
    model = make(config_class, "seq2seq")
    inputs = {name: value for name, value in make_inputs(model).items() if not name.startswith("decoder_")}
    ids = torch.tensor([[1, 4, 5]] * len(inputs["input_ids"]))
    outputs = model.get_encoder()(**inputs, output_hidden_states=hidden_states, return_dict=False)
    assert isinstance(outputs, tuple)
    found = model(encoder_outputs=outputs, attention_mask=inputs["attention_mask"], decoder_input_ids=ids)
    torch.testing.assert_close(found.logits, model(**inputs, decoder_input_ids=ids).logits)
    assert (found.encoder_hidden_states is None) is not hidden_states


def test_bfloat16_and_prompts_of_one_row(decoded):
    for kind in KINDS:
        model = make(GruConfig, kind).bfloat16()
        for row in rows_alone(make_inputs(model)):
            expected = GenerationMixin.generate(model, **row, max_new_tokens=NEW)
            assert model.generate(**row, max_new_tokens=NEW).tolist() == expected.tolist()
    assert len(decoded) == len(KINDS) * len(MASK)


@pytest.mark.parametrize("part", ["model", "backbone", "stack"])
@pytest.mark.parametrize("kind", ["lm", "seq2seq"])
def test_what_hangs_on_a_module_is_not_passed_by(kind, part, decoded):
    """Hooks, wrapped forwards and subclasses see every step."""
    model = make(LstmConfig, kind)
    inputs = make_inputs(model) | {"max_new_tokens": 5, "eos_token_id": None}
    expected = model.generate(**inputs)
    assert len(decoded) == 1
    backbone = model.model if kind == "lm" else model.decoder
    module = {"model": model, "backbone": backbone, "stack": backbone.stack}[part]
    seen = []
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = register(lambda *args: seen.append(args[0]) and None)
        assert model.generate(**inputs).tolist() == expected.tolist()
        handle.remove()
    plain = module.forward
    module.forward = lambda *args, **kwargs: (seen.append(module), plain(*args, **kwargs))[1]
    assert model.generate(**inputs).tolist() == expected.tolist()
    del module.forward
    own = type(module)

    class Mine(own):
        def forward(self, *args, **kwargs):
            seen.append(self)
            return super().forward(*args, **kwargs)

    module.__class__ = Mine
    assert model.generate(**inputs).tolist() == expected.tolist()
    module.__class__ = own
    assert seen == [module] * 20 and len(decoded) == 1
    assert model.generate(**inputs).tolist() == expected.tolist() and len(decoded) == 2


class Wrapped(torch.nn.Module):
    """As those that shard a module, or move its weights, do."""

    def __init__(self, module):
        super().__init__()
        self.module, self.calls = module, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


@pytest.mark.parametrize(("kind", "name"), [("lm", "model"), ("seq2seq", "decoder")])
def test_a_wrapper_of_the_backbone_sees_every_step(kind, name, decoded):
    model = make(LstmConfig, kind)
    inputs = make_inputs(model) | {"max_new_tokens": 5, "eos_token_id": None}
    expected = model.generate(**inputs)
    wrapper = Wrapped(getattr(model, name))
    setattr(model, name, wrapper)
    assert model.generate(**inputs).tolist() == expected.tolist()
    assert wrapper.calls == 5 and len(decoded) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 2},
        {"use_cache": False},
        {"return_dict_in_generate": True},
        {"generation_config": GenerationConfig(num_beams=2, max_length=9)},
        {"custom_generate": lambda model, input_ids, **kwargs: input_ids},
        {"prefill_chunk_size": 2},
        {"guidance_scale": 1.5},
        {"generation_config": GenerationConfig(max_length=9, guidance_scale=1.5)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_all_else_is_left_to_generate(options, decoded):
    model = make(LstmConfig, "lm")
    inputs = make_inputs(model)
    expected = GenerationMixin.generate(model, **inputs, **options)
    found = model.generate(**inputs, **options)
    assert getattr(found, "sequences", found).tolist() == getattr(expected, "sequences", expected).tolist()
    assert not decoded
    model.generation_config.num_beams = 3
    expected = GenerationMixin.generate(model, **inputs, max_new_tokens=NEW)
    assert model.generate(**inputs, max_new_tokens=NEW).tolist() == expected.tolist() and not decoded
    model.generate(**inputs, num_beams=1, max_new_tokens=NEW)
    assert len(decoded) == 1


def test_options_that_are_not_known_are_left_to_generate(decoded):
    """What a later release of transformers adds is not ignored."""
    model = make(LstmConfig, "lm")
    inputs = make_inputs(model) | {"max_new_tokens": 5}
    model.generation_config.option_of_the_future = None
    model.generate(**inputs)
    assert len(decoded) == 1
    model.generation_config.option_of_the_future = 3
    model.generate(**inputs)
    assert len(decoded) == 1


def test_the_known_options_are_options_of_transformers():
    """One that is renamed there is missed here."""
    config, model = GenerationConfig(), make(LstmConfig, "seq2seq")
    arguments = {
        "streamer",
        "logits_processor",
        "stopping_criteria",
        "encoder_hidden_states",
        "encoder_attention_mask",
    }
    options = {*vars(config), *inspect.signature(model.forward).parameters, *arguments}
    assert generation._HONOURED <= options


@pytest.mark.parametrize("register", [register_module_forward_hook, register_module_forward_pre_hook])
def test_global_hooks_see_every_step(register, decoded):
    model = make(LstmConfig, "lm")
    inputs = make_inputs(model) | {"max_new_tokens": 5, "eos_token_id": None}
    seen = []
    handle = register(lambda module, *args: seen.append(module) if module is model.model else None)
    try:
        found = model.generate(**inputs)
    finally:
        handle.remove()
    assert len(seen) == 5 and not decoded
    assert model.generate(**inputs).tolist() == found.tolist() and len(decoded) == 1


def test_a_compiled_module_is_called(decoded):
    model = make(LstmConfig, "lm")
    inputs = make_inputs(model) | {"max_new_tokens": 5, "eos_token_id": None}
    expected = model.generate(**inputs)
    model.model.compile(backend="eager")
    assert model.generate(**inputs).tolist() == expected.tolist() and len(decoded) == 1


def test_rows_that_ended_are_padded_with_the_end_where_there_is_no_padding(decoded):
    model = make(GruConfig, "lm")
    model.generation_config.pad_token_id = model.config.pad_token_id = None
    inputs = make_inputs(model) | {"max_new_tokens": NEW}
    expected = GenerationMixin.generate(model, **inputs)
    assert model.generate(**inputs).tolist() == expected.tolist() and len(decoded) == 1
    assert (expected[:, -1] == EOS).any()


# --- forward with a cache ------------------------------------------------------------------------------------------

STEP_MASK = torch.tensor(
    [[0, 0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
)


@pytest.mark.parametrize("full_mask", [True, False], ids=["mask of all steps", "mask of these steps"])
@pytest.mark.parametrize("chunks", [[1] * 7, [2, 2, 2, 1], [3, 4], [1, 5, 1]], ids=str)
def test_steps_with_a_cache_equal_one_call(model, chunks, full_mask):
    """With padding anywhere, so that some rows of some chunks are all padding; logits and states."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 13, STEP_MASK.shape, generator=generator)
    prefix = "" if is_lm(model) else "decoder_"
    source = {}
    if not is_lm(model):
        source = {"input_ids": torch.randint(0, 13, (5, 4), generator=generator), "attention_mask": STEP_MASK[:, -4:]}
        source["attention_mask"] = source["attention_mask"].clone()
        source["attention_mask"][4, 1] = 1
    whole = model(**source, **{f"{prefix}input_ids": ids, f"{prefix}attention_mask": STEP_MASK}, use_cache=True)
    cache, logits, begin = None, [], 0
    for size in chunks:
        end = begin + size
        mask = STEP_MASK[:, :end] if full_mask else STEP_MASK[:, begin:end]
        step = {f"{prefix}input_ids": ids[:, begin:end], f"{prefix}attention_mask": mask}
        outputs = model(**source, **step, cache=cache, use_cache=True)
        cache = outputs.cache
        logits.append(outputs.logits)
        begin = end
        assert cache.get_seq_length() == end
    valid = STEP_MASK.bool()
    torch.testing.assert_close(torch.cat(logits, dim=1)[valid], whole.logits[valid])
    torch.testing.assert_close(cached_tensors(cache), cached_tensors(whole.cache))


def cached_layers(cache):
    cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    return [layer for layer in cache.layers if isinstance(layer, RecurrentCacheLayer)]


def cached_tensors(cache):
    layers = cached_layers(cache)
    memory = [part for layer in layers for part in layer.memory or ()]
    return [part for layer in layers for part in layer.states] + memory


def test_no_cache_where_none_is_wanted(model):
    inputs = make_inputs(model)
    inputs |= {} if is_lm(model) else {"decoder_input_ids": inputs["input_ids"]}
    assert model(**inputs, use_cache=False).cache is None
    assert model(**inputs, use_cache=True).cache is not None
    model.train()
    assert model(**inputs).cache is None
    model.eval()
    torch.testing.assert_close(model(**inputs, use_cache=True).logits, model(**inputs, use_cache=False).logits)


@pytest.mark.parametrize("keep", [1, 3, 6, torch.tensor([4, 0])], ids=str)
def test_logits_to_keep(lm, keep):
    inputs = make_inputs(lm)
    whole = lm(**inputs).logits
    expected = whole[:, -keep:] if isinstance(keep, int) else whole[:, keep]
    torch.testing.assert_close(lm(**inputs, logits_to_keep=keep).logits, expected)


def test_later_steps_get_what_the_parent_would_give_them(model):
    inputs = make_inputs(model)
    steps, prepare = [], model.prepare_inputs_for_generation

    def both(ids, **kwargs):
        kwargs["labels"] = ids  # which are for no step
        found = prepare(ids, **kwargs)
        steps.append((found, GenerationMixin.prepare_inputs_for_generation(model, ids, **kwargs)))
        return found

    model.prepare_inputs_for_generation = both
    try:
        GenerationMixin.generate(model, **inputs, do_sample=False, max_new_tokens=4)
    finally:
        del model.prepare_inputs_for_generation
    assert len(steps) == 4
    for found, expected in steps:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] is value
            assert same, name


def test_outputs_hold_what_transformers_would(model):
    inputs = make_inputs(model)
    if not is_lm(model):
        inputs["decoder_input_ids"] = inputs["input_ids"]
    outputs = model(**inputs, use_cache=True, output_hidden_states=True)
    plain_class = next(base for base in type(outputs).mro() if base.__module__.startswith("transformers."))
    plain = plain_class(**{field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)})
    assert list(outputs) == list(plain) and "loss" not in outputs
    assert all(one is other for one, other in zip(outputs.to_tuple(), plain.to_tuple(), strict=True))
    # As accelerate makes one of another, with numbers of another type.
    for again in (type(outputs)(dict(outputs)), type(outputs)(list(outputs.items()))):
        assert list(again) == list(outputs) and again[0] is outputs[0] and again["logits"] is outputs.logits
    assert not type(outputs)() and list(type(outputs)(None, outputs.logits)) == ["logits"]
    with pytest.raises(KeyError):
        outputs["loss"]
    outputs.loss = torch.zeros(())
    assert outputs["loss"] is outputs.loss
    outputs.note = 1
    assert outputs.note == 1 and "note" not in outputs


def test_the_cache_does_not_grow_with_the_text(model):
    inputs = make_inputs(model)
    options = {"eos_token_id": None, "pad_token_id": 0}
    sizes = []
    for length in (3, 40):
        cache = generate(model, inputs, max_new_tokens=length, **options).cache
        prompt = MASK.shape[1] if is_lm(model) else 1
        assert cache.get_seq_length() == prompt + length - 1
        assert len(cached_layers(cache)) == (model if is_lm(model) else model.decoder).config.num_hidden_layers
        # views would hold on to something larger than they are
        sizes.append(sum(part.untyped_storage().nbytes() for part in cached_tensors(cache)))
    assert sizes[0] == sizes[1] > 0


# --- cache methods -------------------------------------------------------------------------------------------------

CACHE_METHODS = {
    "reorder_cache": (torch.tensor([2, 0, 0, 3]), torch.tensor([2, 0, 0, 3])),
    "batch_repeat_interleave": (2, torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])),
    "batch_select_indices": (torch.tensor([3, 1]), torch.tensor([3, 1])),
}


@pytest.mark.parametrize("method", CACHE_METHODS)
def test_cache_methods_choose_rows(model, method):
    """After each the model goes on as if it had read the chosen rows from the start."""
    argument, rows = CACHE_METHODS[method]
    ids = torch.randint(3, 13, (4, 5), generator=torch.Generator().manual_seed(2))
    after = torch.randint(3, 13, (len(rows), 3), generator=torch.Generator().manual_seed(3))
    source = make_inputs(model)
    # `reorder_cache` moves beams of one sentence, whose encoder states are equal.
    if method == "reorder_cache":
        source = {name: value[:1].expand(4, -1) for name, value in source.items()}
    if is_lm(model):
        cache = model(ids, use_cache=True).cache
        expected = model(torch.cat([ids[rows], after], dim=1)).logits[:, 5:]
    else:
        chosen = {name: value[rows] for name, value in source.items()}
        cache = model(**source, decoder_input_ids=ids, use_cache=True).cache
        expected = model(**chosen, decoder_input_ids=torch.cat([ids[rows], after], dim=1)).logits[:, 5:]
    layers = cached_layers(cache)
    for layer in layers:
        getattr(layer, method)(argument)
    assert cache.get_seq_length() == 5
    if is_lm(model):
        logits = model(after, cache=cache).logits
    else:
        logits = model(**chosen, decoder_input_ids=after, cache=cache).logits
    torch.testing.assert_close(logits, expected)


def test_a_reset_cache_is_a_new_one(model):
    inputs = make_inputs(model)
    inputs |= {} if is_lm(model) else {"decoder_input_ids": inputs["input_ids"]}
    outputs = model(**inputs, use_cache=True)
    cache = outputs.cache
    cache.reset()
    assert cache.get_seq_length() == 0
    assert all(layer.states is None and layer.memory is None for layer in cached_layers(cache))
    for layer in cached_layers(cache):  # nothing there to choose from, nothing to remove
        layer.reorder_cache(torch.tensor([0]))
        layer.crop(3)
    torch.testing.assert_close(model(**inputs, cache=cache).logits, outputs.logits, rtol=0, atol=0)


def test_a_cache_cannot_be_cropped(lm):
    cache = lm(**make_inputs(lm), use_cache=True).cache
    with pytest.raises(ValueError, match="a recurrent cache cannot be cropped"):
        cache.crop(-2)
    with pytest.raises(ValueError, match="a recurrent cache cannot be cropped"):
        cache.layers[0].crop(2)
    assert cache.layers[0].get_max_length() == -1
    assert cache.get_mask_sizes(4, 0) == (10, 0)


def test_assisted_decoding_is_refused(lm):
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        lm.generate(torch.tensor([[4, 5]]), assistant_model=make(type(lm.config), "lm_untied"), max_new_tokens=4)


def test_a_cache_of_generate_is_used_as_it_is(lm):
    inputs = make_inputs(lm)
    for cache in (DynamicCache(), DynamicCache(config=lm.config)):
        outputs = lm(**inputs, cache=cache)
        assert outputs.cache is cache
        assert cache.get_seq_length() == 6 and len(cached_layers(cache)) == 2


def refused(model, inputs, **options):
    with pytest.raises(ValueError, match="one size, however long the text; leave it out") as error:
        model.generate(**inputs, max_new_tokens=3, **options)
    return str(error.value).partition(":")[0]


def test_caches_of_another_size_are_refused(model, monkeypatch):
    inputs = make_inputs(model)
    expected = generate(model, inputs, max_new_tokens=3)
    works = {"dynamic", "offloaded", "hybrid"}
    for name in ALL_CACHE_IMPLEMENTATIONS:
        if name == "offloaded" and torch.version.cuda and not torch.cuda.is_available():
            continue  # a build of torch for CUDA has nowhere to offload from
        config = copy.deepcopy(model.generation_config)
        config.cache_implementation = name
        with monkeypatch.context() as patch:
            patch.setattr(model.generation_config, "cache_implementation", name)
            if name in works:
                assert_same_generation(generate(model, inputs, max_new_tokens=3), expected)
            else:
                assert refused(model, inputs) == f"cache_implementation={name!r}"
        if name not in works:
            assert refused(model, inputs, cache_implementation=name) == f"cache_implementation={name!r}"
            assert refused(model, inputs, generation_config=config) == f"cache_implementation={name!r}"
        uncached = generate(model, inputs, max_new_tokens=3, use_cache=False, cache_implementation=name)
        assert_same_generation(uncached, expected)
    static = StaticCache(config=model.config, max_cache_len=20)
    for cache in [static] if is_lm(model) else [static, EncoderDecoderCache(static, DynamicCache())]:
        assert refused(model, inputs, cache=cache) == "a static cache"
