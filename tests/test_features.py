"""Models that read frames of features in place of tokens."""

import json

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from token_classes import MODEL_CLASSES

from hfseq import CnnConfig, GruConfig, LstmConfig, LstmForCausalLM, LstmForConditionalGeneration, LstmModel
from hfseq.models.pooling import Pooling
from hfseq.models.spec_augment import span_mask, spec_augment

pytestmark = pytest.mark.contract

CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
CLASSES = [
    pytest.param(auto, model_class, id=model_class.__name__)
    for heads in MODEL_CLASSES.values()
    for auto, model_class in heads.items()
    if auto != CAUSAL
]
WIDTH = 3
TINY = {"vocab_size": 17, "input_size": WIDTH, "hidden_size": 8, "num_hidden_layers": 2, "dropout": 0.0}
# Left, right and gapped padding, a full row, a row of one frame.
MASK = torch.tensor(
    [
        [0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 1, 1],
        [1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 0, 0, 0],
    ]
)
FACTORS = pytest.mark.parametrize("factor", [1, 3])


def make(model_class, **fields):
    """A model in float64 with large weights, and features that are far from normalised."""
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**TINY | fields)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.8, 0.8)
    backbone = model.base_model
    backbone.set_feature_statistics(torch.arange(WIDTH) + 2.0, torch.arange(WIDTH) + 0.5)
    return model


def frames(mask=MASK, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(*mask.shape, WIDTH, generator=generator, dtype=torch.float64)
    return values * 3 + 2


def run(model, features, mask=None):
    """First output for features and a target that is the same for all rows."""
    inputs = {"input_features": features, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 6]]).repeat(len(features), 1)
    return model(**inputs)[0]


def valid(model, output, row, n, positions):
    """The part of a row of an output that belongs to its n valid frames."""
    if output.dim() == 2 or model.config.is_encoder_decoder:
        return output[row]
    if model.config.subsampling_factor == 1:
        return output[row, positions]
    return output[row, : -(-n // model.config.subsampling_factor)]


def check_rows(model, mask, features):
    """Each row gives what it gives alone, whatever stands at padding, gradients included."""
    spoilt = features.masked_fill(~mask.bool().unsqueeze(2), float("nan"))
    output = run(model, spoilt, mask)
    rows = []
    for row, positions in enumerate(mask.bool()):
        n = int(positions.sum())
        rows.append(valid(model, output, row, n, positions))
        alone = run(model, features[row, positions].unsqueeze(0))
        torch.testing.assert_close(rows[-1], alone[0], rtol=0, atol=1e-10)
    together = torch.autograd.grad(sum(row.pow(2).sum() for row in rows), list(model.parameters()), allow_unused=True)
    alone = torch.autograd.grad(
        sum(run(model, features[i, keep].unsqueeze(0)).pow(2).sum() for i, keep in enumerate(mask.bool())),
        list(model.parameters()),
        allow_unused=True,
    )
    torch.testing.assert_close(together, alone, rtol=1e-8, atol=1e-8)


@FACTORS
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_padding_changes_nothing(auto, model_class, bidirectional, factor):
    model = make(model_class, bidirectional=bidirectional, subsampling_factor=factor)
    check_rows(model, MASK, frames())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([None, 4]),
)
def test_any_padding_changes_nothing(mask, factor, embedding_size):
    model = make(LstmModel, subsampling_factor=factor, embedding_size=embedding_size)
    mask = torch.tensor(mask).long()
    check_rows(model, mask, frames(mask))


@FACTORS
@pytest.mark.parametrize("embedding_size", [None, 5])
def test_inputs_of_the_stack_by_hand(factor, embedding_size):
    """Normalised, moved to the left, filled up with zeros, stacked and projected, by the definition."""
    model = make(LstmModel, subsampling_factor=factor, embedding_size=embedding_size)
    features = frames()
    got, mask = model.embed_frames(features, MASK, 0)
    assert got.shape[1] == -(-MASK.shape[1] // factor)
    for row, positions in enumerate(MASK.bool()):
        rows = (features[row, positions] - model.feature_mean) / model.feature_scale
        rows = torch.cat([rows, rows.new_zeros(-len(rows) % factor, WIDTH)])
        expected = torch.stack([group.flatten() for group in rows.split(factor)])
        if embedding_size is not None:
            expected = model.embed_features(expected)
        steps = positions if factor == 1 else slice(0, len(expected))
        torch.testing.assert_close(got[row, steps], expected)
        assert int(mask[row].sum()) == len(expected)


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_inputs_of_the_stack_in_place_of_features(auto, model_class):
    model = make(model_class, subsampling_factor=2)
    backbone = model.base_model
    inputs, mask = backbone.embed_frames(frames(), MASK, 0)
    more = {"decoder_input_ids": torch.tensor([[1, 5]] * 5)} if auto == SEQ2SEQ else {}
    by_features = model(input_features=frames(), attention_mask=MASK, **more)[0]
    by_inputs = model(inputs_embeds=inputs, attention_mask=mask, **more)[0]
    torch.testing.assert_close(by_inputs, by_features)


@FACTORS
@pytest.mark.parametrize("auto", [auto for auto in next(iter(MODEL_CLASSES.values())) if auto != CAUSAL])
@pytest.mark.parametrize("config_class", MODEL_CLASSES)
def test_saved_and_loaded_is_the_same(config_class, auto, factor, tmp_path):
    model = make(MODEL_CLASSES[config_class][auto], subsampling_factor=factor)
    model.save_pretrained(tmp_path)
    assert "AutoModelForCausalLM" not in json.loads((tmp_path / "config.json").read_text())["auto_map"]
    loaded, info = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not any(info.values()), info
    torch.testing.assert_close(run(loaded, frames(), MASK), run(model, frames(), MASK))
    prefix = "" if auto == "AutoModel" else "model."
    saved = load_file(tmp_path / "model.safetensors")
    assert saved[f"{prefix}feature_mean"].tolist() == [2, 3, 4]
    assert not any(name.endswith("embed_tokens.weight") for name in saved if "decoder" not in name)
    assert loaded.main_input_name == "input_features"


@pytest.mark.parametrize("auto", ["AutoModelForSpeechSeq2Seq", "AutoModelForAudioClassification"])
@pytest.mark.parametrize("config_class", MODEL_CLASSES)
def test_auto_classes_for_audio(config_class, auto):
    model = getattr(transformers, auto).from_config(config_class(**TINY))
    assert type(model) in MODEL_CLASSES[config_class].values()
    assert run(model.eval(), frames().float(), MASK).isfinite().all()


@pytest.mark.parametrize("config_class", MODEL_CLASSES)
def test_heads_start_from_each_others_weights(config_class, tmp_path):
    tagger = make(MODEL_CLASSES[config_class]["AutoModelForTokenClassification"], architecture="residual")
    tagger.save_pretrained(tmp_path)
    model = MODEL_CLASSES[config_class]["AutoModel"].from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(model.state_dict(), tagger.model.state_dict())


@pytest.mark.parametrize("config_class", MODEL_CLASSES)
def test_a_new_model_does_not_normalise(config_class):
    model = MODEL_CLASSES[config_class]["AutoModel"](config_class(**TINY))
    assert model.feature_mean.tolist() == [0.0] * WIDTH and model.feature_scale.tolist() == [1.0] * WIDTH


def test_statistics_that_are_missing_in_a_checkpoint(tmp_path):
    """They are created on the meta device, so that they must be initialised like weights."""
    LstmModel(LstmConfig(**TINY | {"input_size": None})).save_pretrained(tmp_path)
    model, info = LstmModel.from_pretrained(tmp_path, input_size=WIDTH, embedding_size=8, output_loading_info=True)
    assert {"feature_mean", "feature_scale"} <= set(info["missing_keys"])
    assert model.feature_mean.tolist() == [0.0] * WIDTH and model.feature_scale.tolist() == [1.0] * WIDTH


def text(ids):
    """Ids before the first EOS or padding: beam search adds one or the other, as the longest row of a batch needs."""
    ids = ids.tolist()
    return ids[: next((i for i, token in enumerate(ids) if token in (0, 2)), len(ids))]


# --- generation ------------------------------------------------------------------------------------------------------


@FACTORS
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("config_class", MODEL_CLASSES)
def test_generation(config_class, factor, beams):
    """Greedily by the fast loop and by that of transformers, and with beams: a row alone and in a batch."""
    model = make(MODEL_CLASSES[config_class][SEQ2SEQ], subsampling_factor=factor)
    words = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
    together = model.generate(input_features=frames(), attention_mask=MASK, **words)
    slow = model.generate(frames(), attention_mask=MASK, return_dict_in_generate=True, **words).sequences
    assert slow.tolist() == together.tolist()
    for row, positions in enumerate(MASK.bool()):
        alone = model.generate(frames()[row, positions].unsqueeze(0), **words)[0]
        assert text(together[row]) == text(alone)


def test_tied_and_resized_embeddings():
    model = make(LstmForConditionalGeneration)
    assert model.get_input_embeddings() is model.decoder.embed_tokens
    assert model.lm_head.weight is model.decoder.embed_tokens.weight
    model.resize_token_embeddings(20, mean_resizing=False)
    assert model.config.vocab_size == 20 and model.decoder.embed_tokens.num_embeddings == 20
    assert model.lm_head.weight is model.decoder.embed_tokens.weight
    assert run(model, frames(), MASK).shape[-1] == 20
    other = torch.nn.Embedding(20, 8).double()
    model.set_input_embeddings(other)
    assert model.decoder.embed_tokens is other


@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForSequenceClassification"])
@pytest.mark.parametrize("config_class", MODEL_CLASSES)
def test_there_are_no_embeddings_to_change(config_class, auto):
    model = make(MODEL_CLASSES[config_class][auto])
    for change in (model.get_input_embeddings, lambda: model.resize_token_embeddings(9)):
        with pytest.raises(NotImplementedError, match="input_size=3.* no token embeddings"):
            change()


# --- the cache -------------------------------------------------------------------------------------------------------


@FACTORS
@pytest.mark.parametrize("config_class", MODEL_CLASSES)
def test_chunks_with_a_cache_equal_one_call(config_class, factor):
    model = make(MODEL_CLASSES[config_class]["AutoModel"], bidirectional=False, subsampling_factor=factor)
    features = frames(torch.ones(2, 14))
    whole = model(input_features=features).last_hidden_state
    cache, parts = None, []
    for chunk in features.split(6, dim=1):
        outputs = model(input_features=chunk, cache=cache, use_cache=True)
        cache = outputs.cache
        parts.append(outputs.last_hidden_state)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


# --- SpecAugment -----------------------------------------------------------------------------------------------------


def test_spans_lie_in_the_valid_part_and_have_their_share():
    torch.manual_seed(0)
    lengths = torch.tensor([3, 10, 57, 200] * 500)
    spans = span_mask(lengths, 200, 0.3, 10, 0)
    assert not spans[torch.arange(200) >= lengths.unsqueeze(1)].any()
    assert not spans[::4].any()  # shorter than a span
    runs = (spans[3::4].long().diff(dim=1, prepend=torch.zeros(500, 1, dtype=torch.long)) == 1).sum(dim=1)
    assert (spans[3::4].sum(dim=1) >= 10 * runs).all()
    # Six spans of 10 at random places among 200: 1 - (1 - about 10 / 200) ** 6 of the frames in the middle.
    assert abs(spans[3::4, 50:150].double().mean() - (1 - (1 - 10 / 191) ** 6)) < 0.02
    assert (span_mask(torch.full((100,), 50), 50, 0.001, 10, 2).sum(dim=1) >= 10).all()


@pytest.mark.parametrize("mask", [None, MASK.bool()])
def test_spans_are_of_consecutive_valid_frames(mask):
    torch.manual_seed(0)
    config = LstmConfig(input_size=WIDTH, apply_spec_augment=True, mask_time_prob=0.4, mask_time_length=2)
    changed = 0
    for _ in range(50):
        rows = spec_augment(torch.ones(5, 7, WIDTH), mask, config)[..., 0]
        for row, positions in zip(rows, MASK.bool() if mask is not None else [slice(None)] * 5, strict=True):
            ends = torch.cat([torch.ones(1), row[positions], torch.ones(1)]).diff().nonzero().flatten().tolist()
            assert all(end - start >= 2 for start, end in zip(ends[::2], ends[1::2], strict=True))
            changed += len(ends)
    assert changed


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_spec_augment_is_for_training_alone(auto, model_class):
    fields = {"apply_spec_augment": True, "mask_time_prob": 0.5, "mask_time_length": 2, "mask_feature_prob": 0.5}
    model = make(model_class, mask_feature_length=1, max_norm=None, classifier_dropout=0.0, **fields)
    plain = make(model_class, max_norm=None, classifier_dropout=0.0)
    torch.testing.assert_close(run(model, frames(), MASK), run(plain, frames(), MASK))
    model.train()
    assert not torch.equal(run(model, frames(), MASK), run(plain.train(), frames(), MASK))
    torch.manual_seed(3)
    first = run(model, frames(), MASK)
    torch.manual_seed(3)
    torch.testing.assert_close(run(model, frames(), MASK), first)


# --- pooling ---------------------------------------------------------------------------------------------------------


def test_the_middle_step():
    values = torch.arange(5 * 7).view(5, 7, 1).double()
    positions = [4, 1, 2, 3, 3]  # the third of five, the second of four, ...
    assert Pooling("middle", 1)(values, MASK.bool()).flatten().tolist() == [
        7 * row + position for row, position in enumerate(positions)
    ]
    assert Pooling("middle", 1)(values).flatten().tolist() == [7 * row + 3 for row in range(5)]
    assert Pooling("middle", 1)(values, torch.zeros(5, 7, dtype=torch.bool)).flatten().tolist() == [0.0] * 5


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("auto", "model_class"), CLASSES)
def test_wrong_inputs(auto, model_class):
    model, more = make(model_class), {"decoder_input_ids": torch.tensor([[1]])} if auto == SEQ2SEQ else {}
    features = frames()[:1]
    for inputs, message in [
        ({"input_features": features[..., :2]}, r"expected \(batch, length, 3\) for input_size=3"),
        ({"input_features": features[0]}, r"expected \(batch, length, 3\)"),
        ({"input_features": features[:, :0]}, "each at least 1"),
        ({"input_ids": torch.tensor([[1]])}, "it reads input_features"),
        ({}, "exactly one of input_features and inputs_embeds"),
        ({"input_features": features, "inputs_embeds": features}, "exactly one of input_features and inputs_embeds"),
        ({"input_features": features, "attention_mask": MASK[:1, 1:]}, "attention_mask has shape"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(**inputs, **more)
    tokens = model_class(model_class.config_class(**TINY | {"input_size": None}))
    with pytest.raises(ValueError, match="it reads input_ids"):
        tokens(input_features=features, **more)


def test_wrong_masks_of_stacked_frames():
    model = make(LstmModel, subsampling_factor=2)
    with pytest.raises(ValueError, match="of 3 frames, but 4 steps of 2 frames were read"):
        model.mask_of_steps(MASK[:, :3], 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_size": 0}, "input_size=0 is impossible"),
        ({"subsampling_factor": 0}, "subsampling_factor=0 is impossible"),
        ({"input_size": None, "subsampling_factor": 2}, "set input_size"),
        ({"input_size": None, "apply_spec_augment": True}, "set input_size"),
        ({"char_encoder": "cnn"}, "which have no characters"),
        ({"pointer_generator": True}, "but no words to copy"),
        ({"add_cross_attention": True}, "decoders read tokens"),
        ({"mask_time_prob": 1.5}, r"it must lie in \[0, 1\]"),
        ({"mask_time_length": 0}, "it must be at least 1"),
        ({"mask_feature_min_masks": -1}, "it must not be negative"),
    ],
)
def test_impossible_configurations(fields, message):
    with pytest.raises(ValueError, match=message):
        LstmConfig(**TINY | fields)


def test_language_models_read_tokens():
    with pytest.raises(ValueError, match="language models and decoders read tokens"):
        LstmForCausalLM(LstmConfig(**TINY))


@pytest.mark.parametrize(
    ("mean", "scale", "message"),
    [
        ([0.0] * 2, [1.0] * 3, "mean has shape"),
        ([0.0, float("nan"), 0.0], [1.0] * 3, "mean has values that are not finite"),
        ([0.0] * 3, [1.0, -1.0, 1.0], "scale has negative values"),
    ],
)
def test_impossible_statistics(mean, scale, message):
    with pytest.raises(ValueError, match=message):
        make(LstmModel).set_feature_statistics(torch.tensor(mean), torch.tensor(scale))


def test_statistics():
    model = make(LstmModel)
    model.set_feature_statistics(torch.ones(3), torch.tensor([0.0, 2.0, 3.0]))
    assert model.feature_scale.tolist() == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="without input_size there are no features"):
        LstmModel(LstmConfig(vocab_size=9, hidden_size=4)).set_feature_statistics(torch.ones(3), torch.ones(3))


def test_seq2seq_projects_features_to_the_width_of_its_target_embeddings():
    for config in (LstmConfig(**TINY), GruConfig(**TINY), CnnConfig(**TINY)):
        model = MODEL_CLASSES[type(config)][SEQ2SEQ](config)
        assert model.model.embed_features.out_features == model.decoder.embed_tokens.embedding_dim == 8
        assert config.embedding_size is None and model.config.embedding_size == 8
