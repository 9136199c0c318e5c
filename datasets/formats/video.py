"""Camera frames in video files, read and written in one sequential pass by PyAV."""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ...core.files import replacing, sha256_file
from ..episodes import BadEpisodeError, FrameSource


class _Converters(threading.local):
    """Colour converter of each thread, because making one takes longer than converting ten frames."""

    def __init__(self) -> None:
        self.converter = VideoReformatter()


_converters = _Converters()


class VideoFrames(FrameSource):
    """Frames of one camera in one episode, inside a video file that may hold several episodes.

    A read decodes in one forward pass. It starts at the key frame before the first wanted frame, skips groups of
    pictures without a wanted frame, and stops after the last wanted one. The file is opened at the first read.

    Args:
        path: Video file.
        step: Observation index of each frame, (F,), ascending.
        seconds: Time of each frame in the file, (F,), in seconds. None means that the file holds this camera alone:
            its frames are counted, whatever their clock.
        fps: Frames per second; a frame further than half an interval from its time counts as missing.
        episode: Number of the episode, for errors.
        content: SHA-256 of the file where it is known; None hashes the file once, when it is needed.
    """

    def __init__(
        self,
        path: str | Path,
        step: np.ndarray,
        *,
        seconds: np.ndarray | None = None,
        fps: float | int,
        episode: int = 0,
        content: str | None = None,
    ) -> None:
        if fps <= 0:
            raise ValueError(f"expected fps > 0, got {fps}")
        if seconds is not None and len(seconds) != len(step):
            raise ValueError(f"expected one time per frame: {len(step)} frames, {len(seconds)} times")
        self.path = Path(path)
        self.step = np.asarray(step, np.int64)
        self.fps = float(fps)
        self.episode = episode
        self._seconds = None if seconds is None else np.asarray(seconds, np.float64)
        self._content = content

    @property
    def identity(self) -> str:
        """SHA-256 of the file, and a hash of the times of the frames in it.

        Raises:
            BadEpisodeError: If the file cannot be read (status ``"video"``).
        """
        if self._content is None:
            self._require()
            self._content = file_digest(self.path)
        if self._seconds is None:
            return self._content
        # Milliseconds tell frames apart, and do not depend on how a reader sums its time stamps.
        places = np.round(self._seconds * 1000).astype(np.int64)
        return f"{self._content}#{hashlib.sha256(places.tobytes()).hexdigest()[:16]}"

    def read(self, indices: np.ndarray, size: int | None = None) -> np.ndarray:
        """Decode frames by their place 0 … F−1; see `FrameSource.read`.

        Raises:
            IndexError: If a place is outside the recording.
            BadEpisodeError: If the file is missing, cannot be decoded or ends early (status ``"video"``).
        """
        places = np.asarray(indices, np.int64)
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < len(self.step):
            raise IndexError(
                f"frames {int(places.min())} … {int(places.max())} of a recording with {len(self.step)} frames"
            )
        if (np.diff(places) < 0).any():
            raise ValueError("expected ascending places, so that one pass over the video is enough")
        self._require()
        try:
            return self._decode(places, size)
        except (av.FFmpegError, OSError) as error:
            raise self._bad(f"cannot be decoded ({error}): the file is damaged or incomplete") from error

    def _decode(self, places: np.ndarray, size: int | None) -> np.ndarray:
        with av.open(str(self.path)) as container:
            stream = _video_stream(container)
            if stream is None:
                raise self._bad("holds no video stream")
            stream.codec_context.thread_count = 1  # readers run in parallel; threads inside one are slower here
            height, width = _scaled(stream.height, stream.width, size)
            if self._seconds is None:
                times = _frame_times(container, stream)
                if len(times) < len(self.step):
                    raise self._bad(f"expected {len(self.step)} frames, the file holds {len(times)}")
                half = 0.5 * float(np.diff(times).min(initial=1 / self.fps))
            else:
                times, half = self._seconds, 0.5 / self.fps
            out = np.empty((len(places), 3, height, width), np.uint8)
            wanted = times[places]
            done = self._pick(container, stream, wanted, half, out)
            if done == 0 and len(wanted):
                # the container's index points behind the wanted frame: start from its beginning
                container.seek(0)
                stream.codec_context.flush_buffers()
                done = self._pick(container, stream, wanted, half, out, seek=False)
            if done < len(wanted):
                raise self._bad(
                    f"expected a frame at {wanted[done]:.3f} s (frame {places[done]} of {len(self.step)}), "
                    "the file has none there: it is damaged, or ends early"
                )
        return out

    def _pick(
        self,
        container: InputContainer,
        stream: VideoStream,
        wanted: np.ndarray,
        half: float,
        out: np.ndarray,
        seek: bool = True,
    ) -> int:
        """Fill ``out`` with the frames at the wanted times; return the number found before one was missing."""
        if not len(wanted):
            return 0
        base = float(stream.time_base or 1)
        if seek:
            container.seek(max(0, int((wanted[0] + 0.5 * half) / base)), stream=stream)
        shape = out.shape[2:]
        done = 0

        def need() -> float:
            return float(wanted[done])

        for frame in _decode_needed(container, stream, need, half):
            if frame.pts is None:
                continue
            at = frame.pts * base
            if at > wanted[done] + half:
                return done
            if at < wanted[done] - half:
                continue
            if frame.is_corrupt:
                raise self._bad(f"frame at {at:.3f} s is damaged")
            picture = _converters.converter.reformat(frame, shape[1], shape[0], "rgb24", interpolation="BILINEAR")
            planes = picture.to_ndarray().transpose(2, 0, 1)
            while done < len(wanted) and abs(wanted[done] - at) <= half:
                out[done] = planes
                done += 1
            if done == len(wanted):
                break
        return done

    def _require(self) -> None:
        if not self.path.is_file():
            raise self._bad("there is no such file")

    def _bad(self, reason: str) -> BadEpisodeError:
        return BadEpisodeError(self.episode, "video", f"video {self.path}: {reason}")


def count_frames(path: str | Path) -> int:
    """Count the frames of a video file from its packets, without decoding.

    Raises:
        OSError: If the file is missing or not a video (PyAV's errors are OSErrors).
    """
    with av.open(str(path)) as container:
        stream = _video_stream(container)
        return 0 if stream is None else len(_frame_times(container, stream))


def write_video(
    path: str | Path, frames: Iterable[np.ndarray], fps: float | int, *, crf: int = 23, key_interval: int = 8
) -> int:
    """Encode frames as H.264 (libx264, yuv420p) in an mp4 file, which is there when it is complete.

    A key frame every 8 frames halves the file against LeRobot's every 2 frames, and costs a random window of 16 frames
    at most 7 more.

    Args:
        path: File to write; its folder must exist.
        frames: Frames (3, H, W), uint8, RGB, with even height and width.
        fps: Frames per second.
        crf: Quality, from 0 (lossless) to 51.
        key_interval: Number of frames from one key frame to the next.

    Returns:
        Number of frames written.

    Raises:
        ValueError: If there is no frame, or a frame has another shape or type, or an odd size.
    """
    path = Path(path)
    count = 0
    with replacing(path) as fresh, av.open(str(fresh), "w", format="mp4") as container:
        stream = None
        for frame in frames:
            if stream is None:
                _check_frame(frame, frame.shape[1:])
                stream = _new_stream(container, frame.shape, fps, crf, key_interval)
            _check_frame(frame, (stream.height, stream.width))
            picture = VideoFrame.from_ndarray(np.ascontiguousarray(frame.transpose(1, 2, 0)), format="rgb24")
            container.mux(stream.encode(picture))
            count += 1
        if stream is None:
            raise ValueError(f"{path}: expected at least one frame, got none")
        container.mux(stream.encode())
    return count


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified: int) -> str:
    return sha256_file(path)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, computed once while its size and time of change stay the same."""
    state = path.stat()
    return _digest(path.resolve(), state.st_size, state.st_mtime_ns)


def _new_stream(
    container: OutputContainer, shape: tuple[int, ...], fps: float | int, crf: int, key_interval: int
) -> VideoStream:
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(10_000))
    stream.height, stream.width = shape[1:]
    stream.pix_fmt = "yuv420p"
    stream.gop_size = key_interval
    stream.codec_context.thread_count = 1
    # Without B-frames time stamps start at 0 and rise, so that episodes can be joined without re-encoding.
    stream.options = {"crf": str(crf), "preset": "veryfast", "bf": "0"}
    return stream


def _check_frame(frame: np.ndarray, size: tuple[int, ...]) -> None:
    if frame.ndim != 3 or len(frame) != 3 or frame.dtype != np.uint8 or frame.shape[1:] != tuple(size):
        raise ValueError(f"expected uint8 frames (3, {', '.join(map(str, size))}), got {frame.dtype} {frame.shape}")
    if frame.shape[1] % 2 or frame.shape[2] % 2:
        raise ValueError(
            f"expected an even height and width, got {frame.shape[1]}x{frame.shape[2]}: H.264 in yuv420p halves the "
            "colour planes; crop or pad the frames by one pixel"
        )


def _video_stream(container: InputContainer) -> VideoStream | None:
    return container.streams.video[0] if container.streams.video else None


def _frame_times(container: InputContainer, stream: VideoStream) -> np.ndarray:
    """Return the times of all frames in seconds, in the order they are shown."""
    stamps = [p.pts for p in container.demux(stream) if p.pts is not None]
    return np.sort(np.asarray(stamps, np.float64)) * float(stream.time_base or 1)


def _decode_needed(
    container: InputContainer, stream: VideoStream, need: Callable[[], float], half: float
) -> Iterator[VideoFrame]:
    """Decode forward, and skip groups of pictures that end before ``need()``, the next wanted time."""
    base = float(stream.time_base or 1)
    held: list[Packet[VideoStream]] = []
    for packet in container.demux(stream):
        if packet.pts is None:  # the end: everything held, then what the decoder keeps back
            for last in (*held, packet):
                yield from last.decode()
            return
        at = packet.pts * base
        if packet.is_keyframe and held and at <= need() + half:
            held.clear()
            stream.codec_context.flush_buffers()
        held.append(packet)
        if at >= need() - half:
            ready, held = held, []
            for one in ready:
                yield from one.decode()


def _scaled(height: int, width: int, size: int | None) -> tuple[int, int]:
    if size is None or min(height, width) == size:
        return height, width
    scale = size / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
