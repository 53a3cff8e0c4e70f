"""Tasks on which models can be compared, with their arguments."""

from dataclasses import dataclass
from typing import Any

from hfseq.tasks import arguments
from hfseq.tasks.bioinformatics import ResidueTagging, SequenceClassification
from hfseq.tasks.classification import Classification
from hfseq.tasks.forecasting import Forecasting
from hfseq.tasks.recommendation import Recommendation
from hfseq.tasks.speech import HEADS
from hfseq.tasks.video import Captioning, GestureClassification
from hfseq.training import arguments as flags


@dataclass(frozen=True)
class Kind:
    """Arguments and classes of a task on which models are compared.

    Attributes:
        model: Model arguments.
        data: Data arguments.
        training: Training arguments.
        tasks: Task, or the tasks by `--head`.
        unit: Noun for an input, on which models are timed.
    """

    model: type
    data: type
    training: type
    tasks: Any
    unit: str


TASKS = {
    "classification": Kind(
        flags.ModelArguments, arguments.SingleLabelArguments, flags.RecipeArguments, Classification, "text"
    ),
    "speech": Kind(
        flags.SpeechModelArguments, arguments.SpeechArguments, flags.GenerationArguments, HEADS, "recording"
    ),
    "forecasting": Kind(
        flags.ForecastModelArguments, arguments.ForecastArguments, flags.RecipeArguments, Forecasting, "window"
    ),
    "residue_tagging": Kind(
        flags.ModelArguments, arguments.ResidueTaggingArguments, flags.RecipeArguments, ResidueTagging, "sequence"
    ),
    "sequence_classification": Kind(
        flags.ModelArguments,
        arguments.SequenceClassificationArguments,
        flags.RecipeArguments,
        SequenceClassification,
        "sequence",
    ),
    "recommendation": Kind(
        flags.RecommendationModelArguments,
        arguments.ScoredRecommendationArguments,
        flags.RecipeArguments,
        Recommendation,
        "history",
    ),
    # Under the names of the tasks of video.
    "gestures": Kind(
        flags.VideoModelArguments,
        arguments.VideoArguments,
        flags.GenerationArguments,
        GestureClassification,
        "clip",
    ),
    "captions": Kind(
        flags.VideoModelArguments, arguments.VideoArguments, flags.GenerationArguments, Captioning, "clip"
    ),
}
"""Name of a task to its arguments and classes."""
