"""The registered classes over which the contracts go.

A contract of what is the same for all cells, such as heads and caches, need not run for every cell. Of the linear
recurrences QRNN stands for all, whose state has the most parts; `test_linear.py` has what is the others' own.
"""

from hfseq.models import MODEL_CLASSES as ALL

OTHERS = {"AutoModelForTimeSeriesPrediction"}  # reads no tokens: test_prediction_head.py
LIKE_QRNN = {"MinGru", "MinLstm", "Ssru"}
LINEAR = LIKE_QRNN | {"Qrnn"}
FAMILIES = {config_class: heads for config_class, heads in ALL.items() if config_class.family not in LIKE_QRNN}
"""Config class to the classes of its heads by Auto class."""
MODEL_CLASSES = {
    config_class: {auto: model_class for auto, model_class in heads.items() if auto not in OTHERS}
    for config_class, heads in FAMILIES.items()
}
"""The same with heads that read tokens."""
