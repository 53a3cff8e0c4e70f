"""Recordings on the demo page: where they are kept, and the handlers of recognition and audio classification."""

import secrets
from collections import OrderedDict
from typing import Any, NamedTuple

from hfseq.demo.loading import DemoModel
from hfseq.errors import InputError

TASKS = ("automatic-speech-recognition", "audio-classification")
"""Tasks whose pages take recordings."""
LONGEST_RECORDING = 60.0
"""Maximum length of a recording in seconds."""
LARGEST_RECORDING = 12 * 2**20
"""Maximum size of a recording in bytes: a minute in stereo, not compressed."""
KEPT = 16
"""Number of recordings that are kept."""
_TYPES = {"WAV": "audio/wav", "WAVEX": "audio/wav", "FLAC": "audio/flac", "OGG": "audio/ogg", "MP3": "audio/mpeg"}
_MAX_CHANNELS, _MAX_RATE = 2, 200_000
_NONE = "Choose or record something first."
_GONE = "the recording is no longer there; choose or record it again"


class Recording(NamedTuple):
    """A recording that was sent to the page.

    Attributes:
        contents: Contents of the file.
        media_type: Its media type.
        seconds: Its length.
    """

    contents: bytes
    media_type: str
    seconds: float


class Recordings:
    """Recordings that were sent to the page: in memory only, the newest `KEPT` of them.

    Each has a name that cannot be guessed, so that only its sender can listen to it.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Recording] = OrderedDict()

    def add(self, contents: bytes) -> str:
        """Check and keep a recording; return its name.

        Raises:
            InputError: If it is no recording, of another format, or too long.
        """
        recording = _checked(contents)
        name = secrets.token_urlsafe(16)
        self._kept[name] = recording
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> Recording | None:
        """The recording of a name, or None if there is none."""
        return self._kept.get(name)


def _checked(contents: bytes) -> Recording:
    """The recording in a file, by its header alone: a compressed file may be a thousand times as long as it is large.

    Raises:
        InputError: If it is no recording, of another format, or too long.
    """
    import io

    import soundfile  # type: ignore[import-untyped]

    try:
        with soundfile.SoundFile(io.BytesIO(contents)) as file:
            kind, frames, rate, channels = file.format, file.frames, file.samplerate, file.channels
    except soundfile.LibsndfileError:
        kind, frames, rate, channels = "", 0, 1, 1
    if kind not in _TYPES:
        raise InputError("not a recording in WAV, FLAC, Ogg or MP3")
    if channels > _MAX_CHANNELS or not 1000 <= rate <= _MAX_RATE:
        raise InputError(f"{channels} channels at {rate} Hz; there may be {_MAX_CHANNELS}, at up to {_MAX_RATE} Hz")
    # A file that does not know its length has the largest number of frames.
    if not 0 < frames <= LONGEST_RECORDING * rate:
        raise InputError(f"the recording has no samples, or more than {LONGEST_RECORDING:g} seconds")
    return Recording(contents, _TYPES[kind], frames / rate)


def transcribe(demo: DemoModel, recordings: Recordings, name: str, beams: float | None = None) -> tuple[str, str]:
    """Transcribe a recording.

    Args:
        demo: The model.
        recordings: Recordings of the page.
        name: Name of the recording; empty for none.
        beams: Number of beams; None for a CTC model, which has none.

    Returns:
        The transcript and a note.
    """
    recording = _find(recordings, name)
    if recording is None:
        return "", _NONE
    settings = {} if beams is None else {"num_beams": int(beams)}
    text = demo.ask(recording.contents, **settings)["text"].strip()
    return text, f"{recording.seconds:.1f} s." if text else f"{recording.seconds:.1f} s, in which no speech was found."


def classify_audio(demo: DemoModel, recordings: Recordings, name: str) -> tuple[dict[str, float] | None, str]:
    """Classify a recording: scores of its classes, and a note."""
    recording = _find(recordings, name)
    if recording is None:
        return None, _NONE
    found: list[dict[str, Any]] = demo.ask(recording.contents)
    return {one["label"]: one["score"] for one in found}, f"{recording.seconds:.1f} s."


def _find(recordings: Recordings, name: str) -> Recording | None:
    """The recording of a name; None for no name.

    Raises:
        InputError: If it is no longer kept.
    """
    if not name:
        return None
    if (found := recordings.get(name)) is None:
        raise InputError(_GONE)
    return found
