"""Features of a word from its characters, beside its embedding."""

from torch import Tensor, nn

from .configuration_base import SequenceConfig
from .convolution import Convolution
from .pooling import Pooling
from .recurrent import RecurrentStack


class CharacterEncoder(nn.Module):
    """One vector for each word, from its characters alone: a word that was never seen has one, too.

    - `cnn`: a convolution over the characters and the maximum over them (Ma & Hovy 2016, section 2.1).
    - `lstm`: the final states of an LSTM in both directions (Lample et al. 2016, section 4.1).

    Dropout is on the embeddings of characters, as in Ma & Hovy.

    Args:
        config: Its fields `char_encoder`, `char_vocab_size`, `char_embedding_size`, `char_hidden_size`,
            `char_kernel_size` and `dropout`.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        width = config.char_hidden_size
        self.embed_characters = nn.Embedding(config.char_vocab_size, config.char_embedding_size)
        self.dropout = nn.Dropout(config.dropout)
        self.recurrent = config.char_encoder == "lstm"
        self.layer: nn.Module
        if self.recurrent:
            self.layer = RecurrentStack("lstm", config.char_embedding_size, width, 1, bidirectional=True)
        else:
            size = config.char_kernel_size
            self.layer = Convolution(config.char_embedding_size, width, size, weight_norm=False, gain=2.0)
        self.pooling = Pooling("last" if self.recurrent else "max", width, two_halves=self.recurrent)

    def forward(self, char_ids: Tensor) -> Tensor:
        """Map characters `[B, T, L]`, 0 after the last one of a word, to `[B, T, char_hidden_size]`.

        What has no character, as padding and special tokens, gives zeros.
        """
        words = char_ids.reshape(-1, char_ids.shape[2])  # [B T, L]
        mask = words != 0
        embedded = self.dropout(self.embed_characters(words))
        outputs, _ = self.layer(embedded, mask)
        values = outputs[-1] if self.recurrent else outputs.relu()
        features = self.pooling(values, mask)
        return features.reshape(char_ids.shape[0], char_ids.shape[1], features.shape[1])
