"""What a media file says of itself, without its contents: the facts by which fakes may be told without looking."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """Facts of one clip's file, or of its two files."""

    duration_s: float
    """How long picture and sound run together, as the file declares it, in seconds."""
    video_start_s: float
    """First time stamp of the picture on its file's clock, in seconds."""
    audio_start_s: float
    """First time stamp of the sound on its file's clock, in seconds."""
    width: int
    """Pixels of a frame as it is shown, after rotation."""
    height: int
    """Pixels of a frame as it is shown, after rotation."""
    fps: float
    """Frames per second on average, as the file declares it."""
    bit_rate: float
    """Bits per second: 8 * file_bytes / duration_s; 0 where no duration is declared."""
    file_bytes: int
    """Size of the file, or of both files together."""
    sample_rate: int
    """Samples of the sound per second."""
    channels: int
    """Channels of the sound."""
    video_codec: str
    """FFmpeg's name, e.g. h264."""
    audio_codec: str
    """FFmpeg's name, e.g. aac."""
    rotation: int
    """Degrees counter-clockwise, 0 to 359, by which the stored frames are turned to be shown (90, 180, 270: phones)."""
