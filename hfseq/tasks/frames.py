"""Prediction of the next frames of a clip, or of the next points of a path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForTimeSeriesPrediction, PreTrainedModel

from hfseq import metrics
from hfseq.data.encoding import EncodedSplits
from hfseq.data.video import CLIP, PLACE, stack_windows
from hfseq.errors import InputError
from hfseq.lazy import datasets
from hfseq.metrics.video import WINDOW
from hfseq.models import is_hfseq
from hfseq.plots import plot_clips, plot_paths, save_animation
from hfseq.tasks.clips import SHOWN, Video


class FramePrediction(Video):
    """Prediction of the next frames of a clip, or of the next points of a path.

    A row is a window of a clip: `context_length` frames that are known, then `prediction_length` to predict. Training
    windows begin at every `train_stride`-th frame, others follow each other. The raw prediction of a row is
    `[prediction_length, F]`.

    Attributes:
        windows: Split name to the row and the first frame of each window; set by `encode`.

    Raises:
        InputError: `--context_length` or `--prediction_length` is missing.
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
    # How a digit moves does not depend on which it is, so that fewer of them are enough.
    embedded_size = 6_000

    def __init__(self, data: Any, args: Any) -> None:
        super().__init__(data, args)
        for name, what in (("context_length", "that are known"), ("prediction_length", "to predict after them")):
            if getattr(data, name) is None:
                raise InputError(f"--{name} is missing: give the number of frames {what}")
        self.windows: dict[str, list[tuple[int, int]]] = {}
        self.own_loss = True

    def embedded_lengths(self) -> tuple[int, int]:
        """Frames of the embedded clips: as many as a window has."""
        return (self._window(), self._window())

    def _window(self) -> int:
        return self.data.context_length + self.data.prediction_length

    def new_processor(self, args: Any) -> None:
        """Set the fields of a new forecaster, which predicts points unless its settings say otherwise."""
        super().new_processor(args)
        if args.ensemble:
            raise InputError("--ensemble: predicted frames are not averaged; leave it out")
        if args.model_name_or_path is not None:
            return
        lengths = {name: getattr(self.data, name) for name in ("prediction_length", "context_length")}
        defaults = {"loss": "mse", **({} if self.frame_shape is None else {"scaling": None})}
        given = args.config_overrides or {}
        chosen = {name: value for name, value in defaults.items() if name not in given}
        self.fields = self.fields | lengths | chosen

    def configure(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Choose the model's own loss; see `Video.configure`.

        Raises:
            InputError: As for `Video.configure`, or it is no model of hfseq, or `--label_smoothing_factor` is given.
        """
        if not is_hfseq(model.config):
            raise InputError(
                f"--model_name_or_path {model.config.name_or_path}: {model.config.model_type} forecasts series; "
                "frames are predicted by models of hfseq"
            )
        super().configure(model, tokenizer)
        self.own_loss = True
        if self.args.label_smoothing_factor:
            raise InputError("--label_smoothing_factor: frames are no classes to smooth; leave it out")

    def _normalise(self, model: PreTrainedModel, tokenizer: Any) -> None:
        """Do nothing: a forecaster scales its values itself."""

    def _inputs(self, clip: NDArray[np.float32], place: str) -> NDArray[np.float32]:
        if clip.ndim == 4 and self.data.point_scale != 1:
            raise InputError(f"{place}: --point_scale is for points, not for pixels; leave it out")
        return clip * np.float32(self.data.point_scale)

    def _encode(self, model: PreTrainedModel, tokenizer: Any) -> EncodedSplits:
        encoded = super()._encode(model, tokenizer)
        # Few rows of the sample of long and short clips may all be short.
        if "train_sample" in encoded.rows and len(encoded.rows["train"]) and not len(encoded.rows["train_sample"]):
            del encoded.rows["train_sample"], encoded.lengths["train_sample"]
        self.windows = {
            split: list(zip(rows["row"], rows["start"], strict=True)) for split, rows in encoded.rows.items()
        }
        self.collator = stack_windows  # type: ignore[assignment]
        if self.frame_shape is None and str(self.args.metric_for_best_model).endswith("ssim"):
            raise InputError("--metric_for_best_model ssim is for pixels, not for points")
        self.references = {
            split: [np.asarray(row["future_values"]) / self.data.point_scale for row in rows]
            for split, rows in encoded.rows.items()
            if split != "train"
        }
        for split, rows in encoded.rows.items():
            if not len(rows):
                raise InputError(
                    f"{split}: no clip has {self._window()} frames, of which {self.data.context_length} are known and "
                    f"{self.data.prediction_length} to predict"
                )
            short = len(self.splits[split]) - len(set(rows["row"]))
            if short and split != "train_sample":
                encoded.notes.append(
                    f"{split}: {short} of {len(self.splits[split])} clips are left out, with fewer than the "
                    f"{self._window()} frames of --context_length and --prediction_length"
                )
        return encoded

    def _features(self, name: str) -> dict[str, Any]:
        places = {name: datasets.Value("int64") for name in ("row", "start")}
        return {"past_values": self._frames(), "future_values": self._frames(), **places}

    def _rows(self, row: Mapping[str, Any], number: int, split: str, name: str) -> list[dict[str, Any]]:
        frames, found = self._vectors(self.clip(row), row[PLACE]), []
        context, window = self.data.context_length, self._window()
        stride = self.data.train_stride if split == "train" else window
        for start in range(0, len(frames) - window + 1, stride):
            past, future = frames[start : start + context], frames[start + context : start + window]
            found.append(
                {"past_values": past, "future_values": future, "length": window, "row": number, "start": start}
            )
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

    def timed_batch(self, model: PreTrainedModel, batch: Any) -> torch.Tensor:
        """Predicted frames of a batch, on the CPU."""
        return self.predict_batch(model, batch)[1].cpu()

    def decode(self, split: str, raw: Any) -> NDArray[np.float64]:
        """Convert the outputs of a model to frames, or to points in their own unit."""
        return np.asarray(raw, np.float64) / self.data.point_scale

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
        """Values of all windows of a split, `[N, T, F]`, in their own unit."""
        return np.stack([np.asarray(row[name], np.float64) for row in self.encoded[split]]) / self.data.point_scale

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
        """Write `predictions.npz`: `predicted` and `true`, the frames `[N, T, C, H, W]` or points `[N, T, F]`."""
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
