import dataclasses
import gc
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import decoder, window
from data_prep.audio import SAMPLE_RATE
from data_prep.decoder import Decoder
from data_prep.decoder_messages import Message, receive, send
from data_prep.media_file import open_descriptor
from data_prep.rejects import RejectedError, RejectReason
from data_prep.video_filter import VideoFilter

SETTINGS: Any = {
    "window_s": 3.0,
    "place": 0.5,
    "num_frames": 8,
    "min_duration_s": 0.5,
    "leading_silence_db": -40.0,
}

# A child that starts as the real one does, notes that, and then answers its requests as the test says.
OTHER_CHILD = """
import os, signal, socket, sys
from data_prep.decoder_messages import Message, receive, send

def main(connection, memory_bytes):
    with open({starts!r}, "a") as file:
        file.write("started\\n")
    sock = socket.socket(fileno=connection)
    send(sock, Message(header={{"answer": "ready"}}))
    number = 0
    while (request := receive(sock, most_descriptors=2)) is not None:
        number += 1
        {answer}
"""
REJECT = 'send(sock, Message(header={"answer": "rejected", "reason": "unreadable", "detail": "the first answer"}))'


@pytest.fixture
def clip(clips: Any, tmp_path: Path) -> str:
    return str(clips.write(tmp_path / "clip.mp4", sound=clips.tone(1000, 3.0, 44_100), rate=44_100))


@pytest.fixture
def other_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Puts a child in place that runs `answer` for each request; gives the file in which it notes its starts."""

    def call(answer: str) -> Path:
        starts = tmp_path / "starts"
        (tmp_path / "other_child.py").write_text(OTHER_CHILD.format(starts=str(starts), answer=answer))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(decoder, "_CHILD_MODULE", "other_child")
        return starts

    return call


@pytest.fixture
def made() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


def rejected(made: Decoder, uri: str, audio_uri: str | None = None) -> tuple[RejectReason, str]:
    with pytest.raises(RejectedError) as info:
        made.read_window(uri, audio_uri, **SETTINGS)
    return info.value.reason, info.value.detail


def running(made: Decoder) -> int:
    pid = made.child_pid
    assert pid is not None
    assert Path(f"/proc/{pid}").exists()
    return pid


def assert_same(one: Any, other: Any) -> None:
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_equal(left, right, err_msg=field.name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"place": 0.1, "num_frames": 3},
        {"window_s": 7.0, "trim_silence": True},
        {"speed": 1.25, "video_filter": VideoFilter(codec="h264", quality=40, drop_share=0.5, seed=3)},
    ],
)
def test_the_child_decodes_what_this_process_would(made: Decoder, clip: str, changes: dict[str, Any]) -> None:
    with open_descriptor(clip) as descriptor:
        expected = window.read_window(descriptor, None, **SETTINGS | changes)
    clip_window = made.read_window(clip, None, **SETTINGS | changes)
    assert_same(clip_window, expected)
    assert clip_window.images[0].flags.writeable
    assert made.probe(clip, None) == expected.facts


def test_sound_from_another_file(made: Decoder, clips: Any, clip: str, tmp_path: Path) -> None:
    voice = tmp_path / "voice.wav"
    clips.write(voice, frame_times=[], sound=clips.tone(500, 2.0, 8000), rate=8000, audio_codec="pcm_s16le")
    with open_descriptor(clip) as video, open_descriptor(str(voice)) as sound:
        expected = window.read_window(video, sound, **SETTINGS)
    assert_same(made.read_window(clip, str(voice), **SETTINGS), expected)
    facts = made.probe(clip, str(voice))
    assert facts == expected.facts
    assert (facts.sample_rate, facts.audio_codec, facts.duration_s) == (8000, "pcm_s16le", 2.0)
    assert facts.file_bytes == voice.stat().st_size + Path(clip).stat().st_size
    assert facts.bit_rate == 8 * facts.file_bytes / 2.0


def test_rejections_come_back_and_the_child_stays(made: Decoder, clips: Any, clip: str, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("This is no film.")
    clips.write(tmp_path / "mute.mp4")
    made.probe(clip, None)
    child = running(made)
    assert rejected(made, str(tmp_path / "no.mp4")) == (RejectReason.MISSING, "the file does not exist")
    assert rejected(made, clip, str(tmp_path / "no.wav"))[0] is RejectReason.MISSING
    assert rejected(made, str(tmp_path / "text.mp4"))[0] is RejectReason.UNREADABLE
    assert rejected(made, str(tmp_path / "mute.mp4"))[0] is RejectReason.NO_AUDIO
    open_files = len(os.listdir(f"/proc/{child}/fd"))
    for _ in range(3):
        made.read_window(clip, None, **SETTINGS)
    assert running(made) == child
    assert len(os.listdir(f"/proc/{child}/fd")) == open_files


def test_the_child_holds_no_secret_and_has_its_limits(
    clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "HF_TOKEN", "PYTHONPATH", "SOME_PASSWORD", "LANG"):
        monkeypatch.setenv(name, str(tmp_path))
    with Decoder(memory_bytes=2_000_000_000) as made:
        made.read_window(clip, None, **SETTINGS)
        process = Path(f"/proc/{running(made)}")
        environment = dict(item.split("=", 1) for item in (process / "environ").read_text().split("\0") if item)
        limits = (process / "limits").read_text()
        libraries = (process / "maps").read_text()
        arguments = (process / "cmdline").read_text()
        assert os.readlink(process / "cwd") == "/"
    assert set(environment) <= {*decoder._INHERITED, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    assert environment["LANG"] == str(tmp_path)
    assert clip not in arguments
    assert re.search(r"Max address space +2000000000 +2000000000 ", limits)
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max file size +1048576 +1048576 ", limits)
    assert "libavcodec" in libraries
    for heavy in ("torch", "librosa", "numba", "arrow", "s3fs"):
        assert heavy not in libraries


def test_a_crash_is_told_and_the_next_clip_gets_a_new_child(other_child: Any, clip: str) -> None:
    starts = other_child("os.kill(os.getpid(), signal.SIGSEGV)")
    with Decoder() as made:
        for count in (1, 2):
            reason, detail = rejected(made, clip)
            assert reason is RejectReason.DECODER_CRASHED
            assert detail == "the decoder died of signal 11 (Segmentation fault)"
            assert made.child_pid is None
            assert starts.read_text().count("started") == 2 * count  # each clip has two tries


def test_an_error_is_told_with_its_last_words(other_child: Any, clip: str) -> None:
    other_child("raise ValueError('odd\\x1b[31m sample format ' + 300 * 'x')")
    with Decoder() as made:
        reason, detail = rejected(made, clip)
    assert reason is RejectReason.DECODER_CRASHED
    assert detail.startswith("the decoder ended with exit code 1: ValueError: odd[31m sample format xxx")
    assert len(detail) < 250


def test_a_clip_is_judged_by_a_child_that_decoded_nothing_before(other_child: Any, clip: str) -> None:
    starts = other_child(f"{REJECT} if number == 1 else os.abort()")
    with Decoder() as made:
        for _ in range(3):
            assert rejected(made, clip) == (RejectReason.UNREADABLE, "the first answer")
    assert starts.read_text().count("started") == 3


def test_a_window_of_another_size_than_was_asked_for_is_not_believed(
    other_child: Any, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_child(
        "from data_prep import window; from data_prep.decoder_answers import pack_window; "
        "send(sock, pack_window(window.read_window(request.descriptors[0], None, "
        "**request.header['settings'] | {'window_s': 2.0})))"
    )
    monkeypatch.setattr(decoder, "_DYING_S", 0.01)
    with Decoder() as made:
        reason, detail = rejected(made, clip)
    assert reason is RejectReason.DECODER_CRASHED
    assert detail.startswith("the decoder answers nonsense: ")


@pytest.mark.parametrize(
    ("answer", "reason", "beginning"),
    [
        ("sock.sendall(b'\\0\\0\\0\\2[]')", RejectReason.DECODER_CRASHED, "the decoder answers nonsense: "),
        ("sock.sendall(b'\\0\\0\\0\\7{\"arr')", RejectReason.TIMEOUT, "decoding took over 0.3 s"),
        ("sock.close(); os._exit(0)", RejectReason.DECODER_CRASHED, "the decoder ended with exit code 0"),
    ],
)
def test_an_answer_that_is_none_is_not_believed(
    other_child: Any, clip: str, monkeypatch: pytest.MonkeyPatch, answer: str, reason: RejectReason, beginning: str
) -> None:
    other_child(answer)
    if "nonsense" in beginning:
        monkeypatch.setattr(decoder, "_DYING_S", 0.01)
    with Decoder(timeout_s=0.3) as made:
        told = rejected(made, clip)
        assert made.child_pid is None
    assert told[0] is reason
    assert told[1].startswith(beginning)


@pytest.mark.parametrize("cause", [signal.SIGSTOP, None])
def test_a_clip_that_takes_too_long_is_given_up(
    other_child: Any, clip: str, cause: signal.Signals | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = decoder._CHILD_MODULE
    if cause is None:
        other_child("signal.pause()")
    with Decoder(timeout_s=0.3) as made:
        if cause is not None:
            made.probe(clip, None)
            os.kill(running(made), cause)
        assert rejected(made, clip) == (RejectReason.TIMEOUT, "decoding took over 0.3 s")
        assert made.child_pid is None
        monkeypatch.setattr(decoder, "_CHILD_MODULE", real)
        made.probe(clip, None)


def test_a_child_that_was_killed_between_two_clips_is_replaced(made: Decoder, clip: str) -> None:
    expected = made.read_window(clip, None, **SETTINGS)
    first = running(made)
    os.kill(first, signal.SIGKILL)
    assert_same(made.read_window(clip, None, **SETTINGS), expected)
    assert running(made) != first


def test_an_interrupt_leaves_no_answer_for_the_next_clip(
    made: Decoder, clips: Any, clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(clips.write(tmp_path / "other.mp4", sound=clips.tone(1000, 2.0, 16_000)))
    made.probe(clip, None)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(decoder, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.probe(clip, None)
    assert made.probe(other, None).sample_rate == 16_000


def test_more_memory_than_the_limit_is_not_taken(clips: Any, clip: str, tmp_path: Path) -> None:
    large = tmp_path / "large.mkv"
    clips.write(large, frame_times=np.arange(8) * 0.375, sound=clips.tone(1000, 3.0, SAMPLE_RATE), side=2048)
    # The libraries take 200 MB of addresses, the eight pictures 8 * 2048 * 2048 * 3 bytes = 101 MB, the frames more.
    with Decoder(memory_bytes=290_000_000) as made:
        made.read_window(clip, None, **SETTINGS)
        reason, detail = rejected(made, str(large))
        assert reason is RejectReason.DECODER_CRASHED
        assert detail == "decoding needs more memory than the 277 MiB that it may have"
        assert made.child_pid is None  # What is left of its memory may be in pieces.
        made.read_window(clip, None, **SETTINGS)
    with Decoder() as made:
        assert made.read_window(str(large), None, **SETTINGS).images[0].shape == (2048, 2048, 3)


def test_a_child_that_does_not_start_is_no_fault_of_the_clip(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_CHILD_MODULE", "no_such_module")
    with Decoder() as made, pytest.raises(RuntimeError, match=r"does not start: .* exit code 1: ModuleNotFoundError"):
        made.probe(clip, None)


def test_a_child_that_the_system_does_not_start_is_no_fault_of_the_clip(
    clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with Decoder() as made, pytest.raises(RuntimeError, match="process does not start: No such file or directory"):
        made.probe(clip, None)


def test_the_child_has_a_session_of_its_own(made: Decoder, clip: str) -> None:
    """So an interrupt from the terminal reaches this process alone, which then ends the child."""
    made.probe(clip, None)
    child = running(made)
    assert os.getsid(child) == os.getpgid(child) == child


def test_no_child_is_left_behind(clip: str) -> None:
    with Decoder() as made:
        made.probe(clip, None)
        children = [running(made)]
    unused = Decoder()
    unused.close()
    forgotten = Decoder()
    forgotten.probe(clip, None)
    children.append(running(forgotten))
    del forgotten
    gc.collect()
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []  # A zombie would still be there.


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit()"])
def test_the_child_ends_with_its_parent_however_that_ends(clip: str, repository: Path, ending: str) -> None:
    program = f"""
import os, signal, sys
from data_prep.decoder import Decoder
from data_prep.decoder_messages import Message, receive, send
made = Decoder()
made.probe({clip!r}, None)
print(made.child_pid, flush=True)
sys.stdin.read()
{ending}
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.communicate(timeout=20)
            poll = select.poll()
            poll.register(child, select.POLLIN)
            assert poll.poll(10_000)  # Milliseconds; a descriptor of a process is readable once that has ended.
        finally:
            os.close(child)


def test_a_request_whose_parent_is_gone_ends_by_itself(clip: str) -> None:
    ours, theirs = socket.socketpair()
    program = (
        f"import signal, sys; sys.path[:] = {sys.path!r}; from data_prep import decoder_child as child, window; "
        f"window.probe = lambda *_: signal.pause(); child._GRACE_S = 0.1; child.main({theirs.fileno()}, 1 << 32)"
    )
    with ours, theirs:
        child = subprocess.Popen([sys.executable, "-c", program], pass_fds=[theirs.fileno()])
        assert receive(ours) is not None
        with open_descriptor(clip) as descriptor:
            send(ours, Message(header={"call": "probe", "timeout_s": 0.1}, descriptors=[descriptor]))
        try:
            assert child.wait(timeout=20) == -signal.SIGALRM
        finally:
            child.kill()


def test_a_bucket_is_read_by_this_process(made: Decoder, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "open_descriptor", lambda uri: open_descriptor(uri.replace("s3://bucket", "")))
    assert made.probe(f"s3://bucket{clip}", None) == made.probe(clip, None)
