"""Configurations of the families of linear recurrences, which differ only in the cell."""

from typing import Literal

from transformers.configuration_utils import strict

from .configuration_recurrent import RecurrentConfig


@strict
class LinearRecurrentConfig(RecurrentConfig):
    """Fields common to the linear recurrences; instantiate the configuration of one, such as `MinGruConfig`.

    Gates and candidates see the input alone, so that all steps run at once: there is no `input_feeding`, and no
    hidden-to-hidden matrix for `weight_dropout`. Other fields: see `RecurrentConfig` and `SequenceConfig`.

    Args:
        residual_blocks: Whether a layer is a residual block (Feng et al. 2024): a convolution and the recurrence, then
            an MLP, each on normalised inputs; see `ResidualStack`. Otherwise it is the cell alone.
        conv_kernel: Number of taps of the block's causal convolution, at least 2; None for none.
        expand: Width of the block's recurrence, in multiples of `hidden_size`.
        intermediate_size: Width of the block's MLP; None means 4 times `hidden_size`.

    Raises:
        ValueError: If a field is out of range, or `input_feeding` or `weight_dropout` is set.
    """

    residual_blocks: bool = False
    conv_kernel: int | None = 4
    expand: int = 2
    intermediate_size: int | None = None

    def __post_init__(self, **kwargs: object) -> None:
        """Validate the values."""
        self.check_numbers(["conv_kernel"], lambda value: value >= 2, "it must be at least 2, or None for none")
        self.check_numbers(["expand"], lambda value: value >= 1, "it must be at least 1")
        self.check_recurrence()
        super().__post_init__(**kwargs)

    def check_recurrence(self) -> None:
        """Raise a `ValueError` for a field that makes a step depend on the state before it in another way."""
        if self.input_feeding:
            self.raise_invalid(
                "input_feeding", "a linear recurrence runs all steps at once; take an LSTM or GRU, or leave it out"
            )
        if self.weight_dropout:
            self.raise_invalid("weight_dropout", "a linear recurrence has no hidden-to-hidden matrix; leave it out")
        if self.residual_blocks and self.layer_norm:
            self.raise_invalid("layer_norm", "residual_blocks are normalised already; leave it out")
        if self.residual_blocks and self.layer_sizes is not None:
            self.raise_invalid("layer_sizes", "residual_blocks add each block's output to its input; leave it out")


@strict
class MinGruConfig(LinearRecurrentConfig):
    """Configuration of minGRU (Feng et al. 2024, section 3.1).

    Args:
        candidate: Function of the candidate state: `g` (positive, see `activate`), `linear` or `tanh`.
    """

    model_type = "hfseq_mingru"
    family = "MinGru"

    candidate: Literal["g", "linear", "tanh"] = "g"


@strict
class MinLstmConfig(LinearRecurrentConfig):
    """Configuration of minLSTM with normalised gates (Feng et al. 2024, section 3.2).

    Args:
        candidate: Function of the candidate state: `g` (positive, see `activate`), `linear` or `tanh`.
    """

    model_type = "hfseq_minlstm"
    family = "MinLstm"

    candidate: Literal["g", "linear", "tanh"] = "g"


@strict
class QrnnConfig(LinearRecurrentConfig):
    """Configuration of the quasi-recurrent network with fo-pooling (Bradbury et al. 2017).

    Args:
        window: Width of the convolutions that give the gates: 2 to see the previous input too, or 1.
        zoneout: Probability that a unit keeps its state at a step of training (section 2.1).

    Raises:
        ValueError: If `zoneout` is out of range, or as `LinearRecurrentConfig`.
    """

    model_type = "hfseq_qrnn"
    family = "Qrnn"

    window: Literal[1, 2] = 2
    zoneout: float | int = 0.0

    def __post_init__(self, **kwargs: object) -> None:
        """Validate the values."""
        self.check_numbers(["zoneout"], lambda value: 0 <= value < 1, "it must lie in [0, 1)")
        super().__post_init__(**kwargs)


@strict
class SsruConfig(LinearRecurrentConfig):
    """Configuration of the simpler simple recurrent unit (Kim et al. 2019)."""

    model_type = "hfseq_ssru"
    family = "Ssru"
