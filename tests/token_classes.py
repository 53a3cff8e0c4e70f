"""The registered classes that read tokens, over which the contract of all heads goes.

A head with inputs of its own has a file of tests of its own.
"""

from hfseq.models import MODEL_CLASSES as ALL

OTHERS = {"AutoModelForTimeSeriesPrediction"}  # test_prediction_head.py
MODEL_CLASSES = {
    config_class: {auto: model_class for auto, model_class in heads.items() if auto not in OTHERS}
    for config_class, heads in ALL.items()
}
