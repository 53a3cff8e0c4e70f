"""Video: classification of clips, captions by an encoder-decoder, and prediction of the next frames or points."""

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForTimeSeriesPrediction,
    AutoModelForVideoClassification,
    PreTrainedModel,
)

from hfseq import metrics
from hfseq.data.collation import CheckedCollator
from hfseq.data.embedded.moving_digits import LENGTHS, moving_digit_rows, render
from hfseq.data.encoding import EncodedSplits, encode_texts
from hfseq.data.features import FeatureCollator, feature_statistics, write_rows
from hfseq.data.video import CLIP, PLACE, ClipFormat, ImageCollator, augment_points, clip_of, read_clip, stack_windows
from hfseq.errors import InputError
from hfseq.inference.benchmark import Run
from hfseq.inference.parallel import run_by_length
from hfseq.metrics.video import WINDOW
from hfseq.models import is_hfseq
from hfseq.plots import plot_alignment, plot_clips, plot_paths, save_animation
from hfseq.processing import image_processor_of, tokenizer_of
from hfseq.tasks.base import Task
from hfseq.tasks.classification import Classification, label_array
from hfseq.tasks.seq2seq import generate_ids, labelled_steps, score_translations, set_generation
from hfseq.tokenization import train_tokenizer

SHOWN = 4
"""Clips of the test that plots show."""
_LARGEST = 50_000_000
"""Numbers in the training clips up to which the baselines that compare all of them are computed."""


class Video(Task):
    """Clips; their frames are read once, and then from a temporary file.

    Attributes:
        form: Frames that are made of a clip; set by `new_processor` and `configure`.
        frame_shape: Channels, height and width of a frame of pixels; None for points.
        statistics: Mean and standard deviation of each value of a frame in the training clips, for a new model; None
            for others.
    """

    features = True
    length_unit = "frames"
    rows = "clips"
    embedded_name = "handwritten digits that move and bounce"
    packages = ("matplotlib", "sklearn")

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        # The reader gives the column of the clips this name, whatever it is in the files.
        self.names = (CLIP, *self.names[1:])
        size = data.image_size
        size = None if size is None else (size[0], size[-1])
        self.form = ClipFormat(data.num_frames, data.frame_stride, size, data.num_channels)
        self.frame_shape: tuple[int, ...] | None = None
        self.frame_size = 0
        self.statistics: tuple[torch.Tensor, torch.Tensor] | None = None
        self._new = False
        self._folder: Any = None

    def read_columns(self) -> tuple[str, ...]:
        """Names of the columns to read beside the clips."""
        return self.names[1:]

    def embedded(self) -> datasets.DatasetDict:
        """Let handwritten digits move; `clip` draws their frames when they are needed."""
        splits = moving_digit_rows(lengths=self.embedded_lengths())
        for split, rows in splits.items():
            splits[split] = rows.add_column(PLACE, [f"{split}, row {row}" for row in range(1, len(rows) + 1)])
        return splits

    def embedded_lengths(self) -> tuple[int, int]:
        """Least and most frames of the embedded clips."""
        return LENGTHS

    def clip(self, row: Mapping[str, Any]) -> NDArray[np.float32]:
        """Frames of a row: pixels `[T, C, H, W]` from 0 to 1, or points `[T, F]`.

        Raises:
            InputError: As for `read_clip`.
        """
        if "positions" in row:
            return clip_of(render(row)[:, 0], row[PLACE], self.form)
        return read_clip(row, self.form)

    # Model

    def new_processor(self, args: Any) -> Any:
        """Create the processing class of a new model, and set the fields of its inputs; see `Task.new_processor`.

        Args:
            args: Model arguments.

        Returns:
            A tokenizer of captions, else None; None also if the arguments name a checkpoint, which has its own.

        Raises:
            InputError: The first training clip cannot be read, or a flag has no effect.
        """
        self._check_flags(args)
        if args.model_name_or_path is not None:
            return None
        first = self.clip(self.splits["train"][0])
        self._new = True
        self.frame_size = int(np.prod(first.shape[1:]))
        self.fields = self.fields | {"input_size": self.frame_size}
        if first.ndim == 4:
            self.frame_shape = first.shape[1:]
            self.fields = self.fields | {"frame_shape": list(self.frame_shape)}
        return None

    def _check_flags(self, args: Any) -> None:
        for name in ("tokenizer_model", "vocab_size", "normalization", "lowercase"):
            if getattr(args, name) != type(args).__dataclass_fields__[name].default:
                raise InputError(f"--{name} is for --task captions; leave it out")

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Take size and channels of frames from a model, and set the statistics of a new one.

        Args:
            model: Model, modified in place.
            tokenizer: Its processing class, or None.

        Raises:
            InputError: A flag gives other frames than the model reads.
        """
        super().configure(model, tokenizer)
        config: Any = model.config
        if is_hfseq(config):
            shape = getattr(config, "frame_shape", None)
            self.frame_shape = None if shape is None else tuple(shape)
            self.frame_size = config.input_size
        else:
            side = config.image_size
            height, width = (side, side) if isinstance(side, int) else side
            self.frame_shape = (config.num_channels, height, width)
            self.frame_size = int(np.prod(self.frame_shape))
            wanted = self.data.num_frames
            if wanted not in (None, config.num_frames):
                raise InputError(f"--num_frames {wanted}: the model reads {config.num_frames}; leave it out")
            self.form = self.form._replace(num_frames=config.num_frames)
        if self.frame_shape is not None:
            channels, *size = self.frame_shape
            for flag, given, own in (
                ("image_size", self.form.image_size, tuple(size)),
                ("num_channels", self.form.num_channels, channels),
            ):
                if given not in (None, own):
                    raise InputError(f"--{flag} {given}: the model reads {own}; leave it out")
            # Those of a new model are those of its data, of which all clips must be.
            if not self._new:
                self.form = self.form._replace(image_size=(size[0], size[1]), num_channels=channels)
        if self.statistics is not None:
            base: Any = model.base_model
            # Of an encoder-decoder the encoder reads the frames.
            getattr(base, "encoder", base).set_feature_statistics(*self.statistics)

    # Encoding

    def encode(self, model: PreTrainedModel, tokenizer: Any, log: Callable[..., Any]) -> None:
        """Configure a model, read all clips, and normalise the inputs of a new model; see `Task.encode`."""
        super().encode(model, tokenizer, log)
        if self._new and self.statistics is None and is_hfseq(model.config) and "train" in self.encoded:
            self._normalise(model, tokenizer)

    def _normalise(self, model: PreTrainedModel, tokenizer: Any) -> None:
        mean, scale = feature_statistics(self.encoded["train"], model.main_input_name)
        if self.frame_shape is not None:
            # Pixels at the rim vary little: those of a channel share mean and scale.
            means, scales = (values.reshape(self.frame_shape[0], -1) for values in (mean, scale))
            centre = means.mean(dim=1, keepdim=True)
            spread = (scales.square() + (means - centre).square()).mean(dim=1, keepdim=True).sqrt()
            mean, scale = (values.expand_as(means).flatten() for values in (centre, spread))
        self.statistics = mean, scale
        self.configure(model, tokenizer)

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        name = self.main_input = model.main_input_name
        if is_hfseq(model.config):
            self.collator = CheckedCollator(FeatureCollator(model, tokenizer), model)
        else:
            assert self.frame_shape is not None
            self.collator = CheckedCollator(ImageCollator(self.frame_shape, image_processor_of(tokenizer)), model)
        self._folder = tempfile.TemporaryDirectory(prefix="hfseq-clips-")
        encoded = EncodedSplits({}, {}, [])
        features = datasets.Features(self._features(name) | {"length": datasets.Value("int64")})
        for split, rows in self.splits.items():
            path = f"{self._folder.name}/{split}.arrow"
            found = write_rows(rows, lambda row, number, split=split: self._rows(row, number, split, name), features, path)
            encoded.lengths[split] = list(found["length"])
            columns = [column for column, kind in features.items() if isinstance(kind, datasets.Array2D)]
            encoded.rows[split] = found.remove_columns("length").with_format(
                "numpy", columns=columns, output_all_columns=True
            )
            if split != "train_sample":
                encoded.notes.extend(self._notes(split, rows))
        return encoded

    def _features(self, name: str) -> dict[str, Any]:
        return {name: self._frames(), "labels": self._label_feature()}

    def _frames(self) -> Any:
        return datasets.Array2D((None, self.frame_size), "float32")

    def _label_feature(self) -> Any:
        raise NotImplementedError

    def _rows(self, row: Mapping[str, Any], number: int, split: str, name: str) -> list[dict[str, Any]]:
        """Encoded rows of a row, by default one.

        Args:
            row: The row.
            number: Its number in the split.
            split: Name of the split.
            name: Column of the frames.
        """
        frames = self._read(row)
        return [{name: frames, "labels": self._labels(row), "length": len(frames)}]

    def _read(self, row: Mapping[str, Any]) -> NDArray[np.float32]:
        """Frames of a row as vectors, `[T, F]`, of the shape that the model reads."""
        clip = self.clip(row)
        shape = clip.shape[1:]
        if self.frame_shape is None and len(shape) == 1:
            if shape != (self.frame_size,):
                raise InputError(f"{row[PLACE]}: {shape[0]} numbers a frame, but the model reads {self.frame_size}")
        elif shape != self.frame_shape:
            if self.frame_shape is None or len(shape) == 1:
                own, other = ("points", "pixels") if len(shape) == 1 else ("pixels", "points")
                raise InputError(f"{row[PLACE]}: a clip of {own}, but the model reads {other}")
            raise InputError(
                f"{row[PLACE]}: frames of {_size(shape)}, but others of {_size(self.frame_shape)}; give --image_size, "
                "or --num_channels"
            )
        return clip.reshape(len(clip), -1)

    def _labels(self, row: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def _notes(self, split: str, rows: datasets.Dataset) -> list[str]:
        return []

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from encoded clips to predictions, and clips; see `Task.timed`."""
        task = self.encoded_split(model, processing_class, split)
        model.eval()

        @torch.inference_mode()
        def run(rows: Sequence[Mapping[str, Any]]) -> Any:
            batch = task.collator([dict(row) for row in rows]).to(model.device)
            labels = batch.pop("labels")
            outputs = None if task.generates else model(**batch)
            return task.raw(model, batch, outputs, labels)

        rows = task.encoded[split]
        return run, [rows[number] for number in range(min(count, len(rows)))]

    # Reports

    def sources(self, split: str) -> list[str]:
        """Name of each clip, or its place."""
        rows = self.splits[split]
        if CLIP not in rows.column_names:
            return list(rows[PLACE])
        return [
            place if clip["number"] >= 0 else Path(clip["path"]).name
            for clip, place in zip(rows[CLIP], rows[PLACE], strict=True)
        ]

    def example(self, split: str) -> str | None:
        """None: a model card cannot show a clip."""
        return None

    def _shown(self, split: str) -> list[tuple[int, NDArray[np.float32]]]:
        """First clips of pixels of a split, with the numbers of their rows."""
        if self.frame_shape is None:
            return []
        return [(number, self.clip(row)) for number, row in enumerate(self.splits[split].select(range(self._few(split))))]

    def _few(self, split: str) -> int:
        return min(SHOWN, len(self.splits[split]))


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{channels} channel{'s' * (channels > 1)} of {height}x{width} pixels"


class GestureClassification(Video, Classification):
    """Classification of clips, such as gestures or actions."""

    columns = (CLIP, "label")
    column_flags = ("clip_column", "label_column")
    other_metrics: ClassVar[tuple[str, ...]] = ()
    hub_task = "video-classification"
    auto_class: ClassVar[Any] = AutoModelForVideoClassification

    def row_classes(self, rows: datasets.Dataset) -> Sequence[Collection[str]]:
        """Class of each row."""
        return [[name] for name in rows[self.names[1]]]

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        if "train_sample" in self.splits:
            self.references = self.references | {"train_sample": label_array(self.splits["train_sample"])}
        return super()._encode(model, tokenizer)

    def _label_feature(self) -> Any:
        return datasets.Value("int64")

    def _labels(self, row: Mapping[str, Any]) -> int:
        return int(row["labels"])

    def _rows(self, row: Mapping[str, Any], number: int, split: str, name: str) -> list[dict[str, Any]]:
        found = super()._rows(row, number, split, name)
        copies = self.data.augmentations if split == "train" else 0
        if not copies:
            return found
        if self.frame_shape is not None or self.frame_size != 2:
            raise InputError("--augmentations turns and bends paths of one point in the plane; leave it out")
        varied = augment_points(found[0][name], copies, np.random.default_rng((self.args.seed, number)))
        return [*found, *({**found[0], name: one} for one in varied)]

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Most frequent class and, for clips of one length, the nearest training clip and a logistic regression."""
        found = super().baseline(split, trained=trained)
        if not trained:
            return found
        name = self.main_input
        step = 1 + self.data.augmentations
        train, test = self.encoded["train"], self.encoded[split]
        lengths = {*self.lengths["train"], *self.lengths[split]}
        rows = len(train) // step
        if len(lengths) > 1 or rows * max(lengths) * self.frame_size > _LARGEST:
            return found
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        own, other = (
            np.stack([np.asarray(row[name]).ravel() for row in rows]) for rows in (train.select(range(0, len(train), step)), test)
        )
        labels = self.references["train"]
        found["nearest"] = KNeighborsClassifier(n_neighbors=1).fit(own, labels).predict(other)
        logistic = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        found["logistic"] = logistic.fit(own, labels).predict(other)
        return found

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the plots of a classification and, of pixels, some clips with their classes."""
        super().plot(model, log, split, predictions)
        true, shown = self.show(self.references[split]), self.show(predictions)
        clips = [(f"{true[number]} → {shown[number]}", clip) for number, clip in self._shown(split)]
        if clips:
            plot_clips(clips, f"{self.args.output_dir}/clips.png")


class Captioning(Video):
    """Captions of clips by an encoder-decoder that attends to the frames (S2VT, Venugopalan et al. 2015)."""

    columns = (CLIP, "caption")
    column_flags = ("clip_column", "text_column")
    metrics = ("exact_match", "bleu", "chrf")
    hub_task = "video-text-to-text"
    auto_class: ClassVar[Any] = AutoModelForSeq2SeqLM
    packages = ("matplotlib", "sacrebleu", "sklearn")
    generates = True

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        name = self.names[1]
        normal = {}
        for split, rows in self._draw(splits).items():
            texts = [" ".join(text.split()) for text in rows[name]]
            normal[split] = rows.remove_columns(name).add_column(name, texts, feature=datasets.Value("string"))
        self.references = {split: list(rows[name]) for split, rows in normal.items() if split != "train"}
        self.signatures["bleu"] = metrics.bleu(["a"], ["a"])["signature"]
        return normal

    def new_processor(self, args: Any) -> Any:
        """Train the tokenizer of the captions of a new model; see `Video.new_processor`."""
        super().new_processor(args)
        if args.model_name_or_path is not None:
            return None
        options: dict[str, Any] = {"vocab_size": args.vocab_size, "normalization": args.normalization}
        texts = self.splits["train"][self.names[1]]
        return train_tokenizer(texts, model=args.tokenizer_model, lowercase=args.lowercase, **options)

    def _check_flags(self, args: Any) -> None:
        """Allow the flags of tokenizers."""

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Set the generation defaults of a model; see `Video.configure`.

        Raises:
            InputError: As for `Video.configure`, or there is no tokenizer.
        """
        super().configure(model, tokenizer)
        self.tokenizer: Any = tokenizer_of(tokenizer)
        if self.tokenizer is None:
            raise InputError(f"--model_name_or_path {model.config.name_or_path}: it has no tokenizer")
        set_generation(model, self.data.num_beams, self.data.max_target_length)

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        if "train_sample" in self.splits:
            self.references = self.references | {"train_sample": list(self.splits["train_sample"][self.names[1]])}
        return super()._encode(model, tokenizer)

    def _label_feature(self) -> Any:
        return datasets.List(datasets.Value("int64"))

    def _labels(self, row: Mapping[str, Any]) -> list[int]:
        limit = self.data.max_target_length
        ids: list[int] = encode_texts(self.tokenizer, [row[self.names[1]]], limit, target=True)[0]["input_ids"][0]
        return ids

    def _notes(self, split: str, rows: datasets.Dataset) -> list[str]:
        limit = self.data.max_target_length
        lengths = encode_texts(self.tokenizer, list(rows[self.names[1]]), limit, target=True)[1]
        count = sum(length > limit for length in lengths)
        if not count:
            return []
        return [
            f"{split}: {count} of {len(rows)} captions are longer than --max_target_length {limit} and were truncated"
        ]

    def loss_inputs(self, model: torch.nn.Module, labels: torch.Tensor) -> dict[str, Any]:
        """Additional inputs for a model whose loss is computed from its logits; see `labelled_steps`."""
        return labelled_steps(getattr(model, "module", model), labels)

    def raw(self, model: PreTrainedModel, batch: Any, outputs: Any, labels: torch.Tensor, **options: Any) -> list[Any]:
        """Generate the token ids of each row in a batch; arguments as for `Task.raw`."""
        return generate_ids(model, batch, self.args, **options)

    def test_options(self) -> dict[str, Any]:
        """Options of the final test: beams."""
        return {"num_beams": self.data.num_beams}

    def decode(self, split: str, raw: Any) -> list[str]:
        """Convert generated token ids to texts."""
        pad = self.tokenizer.pad_token_id
        rows = [[int(one) if one >= 0 else pad for one in ids] for ids in raw]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Compute exact match, BLEU and chrF."""
        return score_translations(predictions, references)

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Most frequent caption of the training clips."""
        if not trained:
            return {}
        (most, _), *_ = Counter(self.splits["train"][self.names[1]]).most_common(1)
        return {"most_frequent": [most] * len(self.splits[split])}

    def show(self, predictions: Any) -> list[str]:
        """Captions as they are."""
        return list(predictions)

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve, some clips with their captions, and the attention to the frames of the first."""
        super().plot(model, log, split, predictions)
        directory = self.args.output_dir
        if clips := [(predictions[number], clip) for number, clip in self._shown(split)]:
            plot_clips(clips, f"{directory}/clips.png")
        weights, words = self._attention(model, split, predictions[0])
        if len(words):
            frames = [f"frame {number}" for number in range(1, weights.shape[1] + 1)]
            plot_alignment(weights, frames, words, f"{directory}/alignment.png")

    @torch.no_grad()
    def _attention(self, model: PreTrainedModel, split: str, text: str) -> tuple[NDArray[np.float32], list[str]]:
        """Attention of each token of a caption to the frames of the first clip, `[tokens, T]`, and the tokens."""
        model.eval()
        ids = encode_texts(self.tokenizer, [text], self.data.max_target_length, target=True)[0]["input_ids"][0]
        row = self.encoded[split][0]
        batch = self.collator([{**row, "labels": ids}]).to(model.device)
        outputs: Any = model(**batch, output_attentions=True)
        weights = outputs.cross_attentions[-1][0].mean(dim=0)
        return weights.float().cpu().numpy(), list(self.tokenizer.convert_ids_to_tokens(ids))


class FramePrediction(Video):
    """Prediction of the next frames of a clip, or of the next points of a path.

    A row is a window of a clip: `context_length` frames that are known, then `prediction_length` to predict. Training
    windows begin at every `train_stride`-th frame, others follow each other. The raw prediction of a row is
    `[prediction_length, F]`.

    Attributes:
        windows: Split name to the row and the first frame of each window; set by `encode`.
    """

    columns = (CLIP,)
    column_flags = ("clip_column",)
    metrics = ("mse", "rmse", "ssim")
    hub_task = "video-to-video"
    auto_class: ClassVar[Any] = AutoModelForTimeSeriesPrediction
    packages = ("matplotlib", "scipy", "sklearn")
    predicts_batches = True
    lists_predictions = False
    label_name = "future_values"

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        self.windows: dict[str, list[tuple[int, int]]] = {}
        self.own_loss = True

    def embedded_lengths(self) -> tuple[int, int]:
        """Frames of the embedded clips: as many as a window has."""
        return (self._window(), self._window())

    def _window(self) -> int:
        return self.data.context_length + self.data.prediction_length

    def _prepare(self, splits: dict[str, Any], known: list[str] | None, train: bool) -> Mapping[str, Any]:
        for name in ("context_length", "prediction_length"):
            if getattr(self.data, name) is None:
                raise InputError(f"--{name} is missing: give the number of frames that are known, and to predict")
        return super()._prepare(splits, known, train)

    def new_processor(self, args: Any) -> None:
        """Set the fields of a new forecaster, which predicts points unless its settings say otherwise."""
        super().new_processor(args)
        if args.ensemble:
            raise InputError("--ensemble: predicted frames are not averaged; leave it out")
        if args.model_name_or_path is not None:
            return
        self.fields |= {"prediction_length": self.data.prediction_length, "context_length": self.data.context_length}
        defaults = {"loss": "mse", **({} if self.frame_shape is None else {"scaling": None})}
        self.fields |= {name: value for name, value in defaults.items() if name not in (args.config_overrides or {})}

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Choose the model's own loss; see `Video.configure`.

        Raises:
            InputError: As for `Video.configure`, or it is no model of hfseq, or `--label_smoothing_factor` is given.
        """
        if not is_hfseq(model.config):
            raise InputError(
                f"--model_name_or_path {model.config.name_or_path}: {model.config.model_type} forecasts series; frames "
                "are predicted by models of hfseq"
            )
        super().configure(model, tokenizer)
        self.own_loss = True
        if self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: frames are no classes to smooth; leave it out")

    def _normalise(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Do nothing: a forecaster scales its values itself."""

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        self.windows = {}
        encoded = super()._encode(model, tokenizer)
        self.collator = stack_windows  # type: ignore[assignment]
        if self.frame_shape is None and str(self.args.metric_for_best_model).endswith("ssim"):
            raise InputError("--metric_for_best_model ssim is for pixels, not for points")
        self.references = {
            split: [np.asarray(row["future_values"]) for row in rows]
            for split, rows in encoded.rows.items()
            if split != "train"
        }
        for split, rows in encoded.rows.items():
            if not len(rows):
                raise InputError(
                    f"{split}: no clip has {self._window()} frames, of which {self.data.context_length} are known and "
                    f"{self.data.prediction_length} to predict"
                )
        return encoded

    def _features(self, name: str) -> dict[str, Any]:
        return {"past_values": self._frames(), "future_values": self._frames()}

    def _rows(self, row: Mapping[str, Any], number: int, split: str, name: str) -> list[dict[str, Any]]:
        frames, found = self._read(row), []
        context, window = self.data.context_length, self._window()
        stride = self.data.train_stride if split == "train" else window
        for start in range(0, len(frames) - window + 1, stride):
            past, future = frames[start : start + context], frames[start + context : start + window]
            found.append({"past_values": past, "future_values": future, "length": window})
            self.windows.setdefault(split, []).append((number, start))
        return found

    def count(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Number of values in context and horizon, over which the loss is a mean."""
        return torch.tensor(batch["past_values"].numel() + batch["future_values"].numel())

    @torch.no_grad()
    def predict_batch(self, model: Any, batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean loss of a batch, and its predicted frames `[B, prediction_length, F]`: of a distribution the means."""
        loss = model(**batch).loss
        past = batch["past_values"]
        with torch.random.fork_rng(devices=[past.device] if past.device.type == "cuda" else []):
            torch.manual_seed(self.args.seed)
            paths = model.generate(past_values=past, prediction_length=self.data.prediction_length).sequences
        frames = paths.mean(dim=1).flatten(2)
        return loss, frames if self.frame_shape is None else frames.clamp(0, 1)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, split: str, **options: Any) -> tuple[Any, float]:
        """Predict each window of a split, distributed over all processes; see `Task.predict`."""
        model.eval()
        rows = self.encoded[split]

        def run(numbers: list[int]) -> list[tuple[Any, float, int]]:
            batch = self.collator([rows[number] for number in numbers]).to(model.device)
            loss, frames = self.predict_batch(model, batch)
            count = int(self.count(batch))
            # The sums of the batch are attributed to its first row.
            return [
                (frame, loss.item() * count * (not row), count * (not row))
                for row, frame in enumerate(frames.cpu().numpy())
            ]

        found = run_by_length(self.lengths[split], self.args.per_device_eval_batch_size, run)
        raw, totals, counts = zip(*found, strict=True)
        return np.stack(raw), float(np.sum(totals) / np.sum(counts))

    def timed(
        self, model: PreTrainedModel, processing_class: Any, split: str, count: int
    ) -> tuple[Run, Sequence[Any]]:
        """Return a function from windows to predicted frames, and windows; see `Task.timed`."""
        task = self.encoded_split(model, processing_class, split)
        model.eval()

        def run(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
            batch = task.collator(list(rows)).to(model.device)
            return task.predict_batch(model, batch)[1].cpu()  # waits for the device

        rows = task.encoded[split]
        return run, [rows[number] for number in range(min(count, len(rows)))]

    def score(self, predictions: Any, references: Any) -> dict[str, float]:
        """Mean squared error of a value and its root and, of frames that are large enough, SSIM."""
        given, right = (np.stack(list(side)).astype(np.float64) for side in (predictions, references))
        mse = metrics.mse(given, right)["score"]
        scores = {"mse": mse, "rmse": mse**0.5}
        if self.frame_shape is not None and min(self.frame_shape[1:]) >= WINDOW:
            shape = (*given.shape[:2], *self.frame_shape)
            scores["ssim"] = metrics.ssim(given.reshape(shape), right.reshape(shape))["score"]
        return scores

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Last frame repeated and, of points, constant velocity and a linear regression on all known points."""
        steps = self.data.prediction_length
        past = self._values(split, "past_values")
        found = {"last": past[:, -1:].repeat(steps, axis=1)}
        if self.frame_shape is not None:
            return found
        if past.shape[1] > 1:
            found["velocity"] = past[:, -1:] + np.arange(1, steps + 1)[:, None] * (past[:, -1:] - past[:, -2:-1])
        if trained:
            from sklearn.linear_model import LinearRegression

            own, future = (self._values("train", name) for name in ("past_values", "future_values"))
            model = LinearRegression().fit(own.reshape(len(own), -1), future.reshape(len(own), -1))
            found["linear"] = model.predict(past.reshape(len(past), -1)).reshape(len(past), steps, -1)
        return found

    def _values(self, split: str, name: str) -> NDArray[np.float64]:
        return np.stack([np.asarray(row[name], np.float64) for row in self.encoded[split]])

    def show(self, predictions: Any) -> list[str]:
        """Values, or of pixels their mean, frame by frame."""
        lines = []
        for frames in predictions:
            values = np.asarray(frames) if self.frame_shape is None else np.mean(frames, axis=1, keepdims=True)
            lines.append("; ".join(" ".join(f"{value:.4g}" for value in frame) for frame in values))
        return lines

    def sources(self, split: str) -> list[str]:
        """Clip of each window, with its first frame if it is not the clip's."""
        names = super().sources(split)
        return [names[row] + (f", frame {start + 1}" if start else "") for row, start in self.windows[split]]

    def summary(self, split: str, predictions: Any) -> str:
        """Heading of the final test."""
        return f"{len(predictions)} windows of {self.data.context_length} + {self.data.prediction_length} frames"

    def write(self, directory: Path, split: str, predictions: Any) -> None:
        """Write `predictions.npz`: the frames of each window, `predicted` and `true`, `[N, T, C, H, W]` or `[N, T, F]`."""
        shape = self.frame_shape or (self.frame_size,)
        sides = {"predicted": predictions, "true": self.references[split]}
        arrays = {name: np.stack(list(side)).astype(np.float32) for name, side in sides.items()}
        arrays = {name: values.reshape(*values.shape[:2], *shape) for name, values in arrays.items()}
        np.savez_compressed(directory / "predictions.npz", **arrays)  # type: ignore[arg-type]

    def plot(self, model: PreTrainedModel, log: Sequence[dict[str, Any]], split: str, predictions: Any) -> None:
        """Write the learning curve, and of some windows true and predicted frames as strips and as an animation.

        Of points in the plane the paths are drawn.
        """
        super().plot(model, log, split, predictions)
        directory, few = self.args.output_dir, min(SHOWN, len(predictions))
        past = self._values(split, "past_values")[:few]
        sides = {"true": self.references[split], "predicted": predictions}
        clips = {name: np.concatenate([past, np.stack(list(side[:few]))], axis=1) for name, side in sides.items()}
        if self.frame_shape is None:
            if self.frame_size == 2:
                plot_paths(clips["true"], clips["predicted"], self.data.context_length, f"{directory}/paths.png")
            return
        shaped = {name: values.reshape(*values.shape[:2], *self.frame_shape) for name, values in clips.items()}
        strips = [(f"{name} {row + 1}", shaped[name][row]) for row in range(few) for name in sides]
        plot_clips(strips, f"{directory}/frames.png")
        save_animation([shaped[name] for name in sides], f"{directory}/frames.gif")


TASKS: dict[str, type[Video]] = {
    "frames": FramePrediction,
    "captions": Captioning,
    "gestures": GestureClassification,
}
"""Values of `--task` and their tasks."""
