"""Video: classification of clips, captions by an encoder-decoder, and prediction of the next frames or points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSeq2SeqLM, AutoModelForVideoClassification, PreTrainedModel

from hfseq import metrics
from hfseq.data.encoding import EncodedSplits, encode_texts
from hfseq.data.video import CLIP, PLACE, augment_points, with_velocities
from hfseq.errors import InputError
from hfseq.inference.alignment import has_attention
from hfseq.inference.loading import load_config
from hfseq.lazy import datasets
from hfseq.models import MAPPINGS
from hfseq.plots import plot_alignment, plot_clips
from hfseq.processing import tokenizer_of
from hfseq.tasks.classification import Classification, label_array
from hfseq.tasks.clips import Video
from hfseq.tasks.frames import FramePrediction
from hfseq.tasks.seq2seq import Generating, score_translations, set_generation
from hfseq.tokenization import train_tokenizer

_LARGEST = 50_000_000
"""Numbers in all clips up to which the baselines that compare all of them are computed."""


class GestureClassification(Video, Classification):
    """Classification of clips, such as gestures or actions."""

    columns = (CLIP, "label")
    column_flags = ("clip_column", "label_column")
    other_metrics: ClassVar[tuple[str, ...]] = ()
    place_column = PLACE
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
        clip, label = self.clip(row), self._labels(row)
        clips = [clip]
        if split == "train" and self.data.augmentations:
            if clip.shape[1:] != (2,):
                raise InputError(f"{row[PLACE]}: --augmentations is for paths of one point in the plane; leave it out")
            rng = np.random.default_rng((self.args.seed, number))
            clips += augment_points(clip, self.data.augmentations, rng)
        frames = [self._vectors(one, row[PLACE]) for one in clips]
        return [{name: one, "labels": label, "length": len(one)} for one in frames]

    def _inputs(self, clip: NDArray[np.float32], place: str) -> NDArray[np.float32]:
        if not self.data.velocities:
            return clip
        if clip.ndim != 2:
            raise InputError(f"{place}: --velocities are those of points; of pixels there are none")
        return with_velocities(clip)

    def baseline(self, split: str, *, trained: bool) -> dict[str, Any]:
        """Most frequent class and, for clips of one length, the nearest training clip and a logistic regression."""
        found = super().baseline(split, trained=trained)
        if not trained:
            return found
        parts = [self.splits[name] for name in ("train", split)]
        if sum(map(len, parts)) * self.clip(parts[0][0]).size > _LARGEST:
            return found
        clips = [[self.clip(row) for row in rows] for rows in parts]
        if len({clip.shape for rows in clips for clip in rows}) > 1:
            return found
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        own, other = (np.stack([clip.ravel() for clip in rows]) for rows in clips)
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


class Captioning(Generating, Video):
    """Captions of clips by an encoder-decoder that attends to the frames (S2VT, Venugopalan et al. 2015)."""

    columns = (CLIP, "caption")
    column_flags = ("clip_column", "text_column")
    metrics = ("exact_match", "bleu", "chrf")
    hub_task = "video-text-to-text"
    auto_class: ClassVar[Any] = AutoModelForSeq2SeqLM
    packages = ("matplotlib", "sacrebleu", "sklearn")

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
        if not has_attention(model):
            return
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


TASKS: dict[str, type[Video]] = {
    "frames": FramePrediction,
    "captions": Captioning,
    "gestures": GestureClassification,
}
"""Values of `--task` and their tasks."""


def video_task(model: Any, data: Any, args: Any) -> Video:
    """Create the task of `--task`; of frames, the lengths that are not given are those of the checkpoint.

    Args:
        model: Model arguments.
        data: Data arguments; lengths of a checkpoint are set in place.
        args: Training arguments.

    Raises:
        InputError: The checkpoint cannot be loaded, or, without training, is a model of another task.
    """
    name = model.model_name_or_path
    if name is not None:
        config: Any = load_config(name)
        # Training may begin with the weights of another task.
        trains = args.do_train or not args.do_predict
        found = None if trains else _task_of(config)
        if found not in (None, data.task):
            raise InputError(
                f"--task {data.task}: {name} is {config.architectures[0]}, a model for --task {found}; give that"
            )
        if data.task == "frames":
            for field in ("context_length", "prediction_length"):
                if getattr(data, field) is None:
                    setattr(data, field, getattr(config, field, None))
    return TASKS[data.task](data, args)


def _task_of(config: Any) -> str | None:
    """Task that the class of a checkpoint is for, if it is for one."""
    for name, task in TASKS.items():
        mapping = MAPPINGS[task.auto_class.__name__]
        if type(config) in mapping and mapping[type(config)].__name__ in (config.architectures or ()):
            return name
    return None
