"""Fixtures of Keras: classifiers, taggers and a language model over `Embedding(mask_zero=True)`, `.keras` and `.h5`.

python benchmarks/peers/keras_models.py OUTPUT

Id 0 is padding, as `mask_zero` has it. Where Keras ends with a softmax, the logits here are the logarithms of its
output, which differ from logits by a number for each row and step.
"""

import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import keras  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from common import WORDS, Case, arguments, rows, write_lines  # noqa: E402
from keras import layers  # noqa: E402
from torch import Tensor  # noqa: E402

VOCABULARY = ["", "[UNK]", *WORDS[:18]]
SIZE = len(VOCABULARY)
SEQUENCES = rows((3, 7, 1, 5), SIZE, first=1, seed=1)


def sequential(*parts: keras.Layer) -> keras.Model:
    """A model of these layers, with weights drawn at random."""
    model = keras.Sequential([keras.Input((None,), dtype="int32"), *parts])
    generator = np.random.default_rng(7)
    model.set_weights([generator.uniform(-0.6, 0.6, weight.shape).astype("float32") for weight in model.get_weights()])
    return model


def embedding() -> keras.Layer:
    """Embeddings that mask id 0."""
    return layers.Embedding(SIZE, 6, mask_zero=True)


def functional() -> keras.Model:
    """A language model in the functional style, with names of its own."""
    ids = keras.Input((None,), dtype="int32", name="tokens")
    states = layers.Embedding(SIZE, 6, mask_zero=True, name="words")(ids)
    for number in range(2):
        states = layers.LSTM(8, return_sequences=True, name=f"memory_{number}")(states)
    model = keras.Model(ids, layers.Dense(SIZE, name="next_word")(states), name="language_model")
    generator = np.random.default_rng(8)
    model.set_weights([generator.uniform(-0.6, 0.6, weight.shape).astype("float32") for weight in model.get_weights()])
    return model


def models() -> dict[str, keras.Model]:
    """File of a case to the model: `.keras`, or the older `.h5`."""
    sequences = {"return_sequences": True}
    compiled = sequential(embedding(), layers.LSTM(8, **sequences), layers.LSTM(6), layers.Dense(1, "sigmoid"))
    compiled.compile("sgd", "binary_crossentropy", metrics=["accuracy"])
    return {
        "lm_lstm_functional/model.keras": functional(),
        "lm_gru/model.h5": sequential(embedding(), layers.GRU(8, **sequences), layers.Dense(SIZE)),
        "classifier_lstm_compiled/model.h5": compiled,
        "classifier_bigru/model.keras": sequential(
            embedding(),
            layers.Bidirectional(layers.GRU(6, **sequences)),
            layers.Bidirectional(layers.GRU(6)),
            layers.Dropout(0.5),
            layers.Dense(3, "softmax"),
        ),
        "tagger_bilstm/model.keras": sequential(
            embedding(), layers.Bidirectional(layers.LSTM(8, **sequences)), layers.TimeDistributed(layers.Dense(5))
        ),
        "tagger_rnn/model.h5": sequential(embedding(), layers.SimpleRNN(8, **sequences), layers.Dense(5, "softmax")),
    }


def main() -> None:
    """Save the models."""
    args = arguments(__doc__)
    torch.set_num_threads(1)
    for name, model in models().items():
        last = model.layers[-1]
        activation = (last.layer if isinstance(last, layers.TimeDistributed) else last).activation.__name__
        case = Case(args.output, f"keras/{Path(name).parent}", ("keras", "h5py"), activation=activation)
        model.save(args.output / "keras" / name)
        write_lines(case.folder / "vocab.txt", VOCABULARY)

        def logits(ids: Tensor, mask: Tensor, model: keras.Model = model, activation: str = activation) -> Tensor:
            answer = torch.as_tensor(model(ids.int().numpy(), training=False)).cpu()
            if activation == "softmax":
                return answer.log()
            return answer.logit() if activation == "sigmoid" else answer

        case.forward(SEQUENCES, logits, "right", "left")
        case.write()


if __name__ == "__main__":
    main()
