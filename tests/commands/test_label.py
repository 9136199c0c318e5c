"""The command that serves the label page: a real process, killed and asked to stop."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import av
import numpy as np
import pytest

from guerdon.cli import main
from guerdon.preference.answer_log import read_answers


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips in MPEG-4 part 2, a codec that browsers do not play."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(3):
        with av.open(str(folder / f"{number}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(12):
                picture = np.full((48, 64, 3), 40 + 60 * number, np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
    rows = [json.dumps({"file": f"{number}.mp4", "instruction": "open the drawer"}) for number in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


class Server:
    """A running ``guerdon label``."""

    def __init__(self, clips, out):
        command = [sys.executable, "-m", "guerdon.cli", "label", "--data", str(clips), "--out", str(out), "--no-open"]
        quiet = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV_"))}
        self.process = subprocess.Popen(
            [*command, "--count", "4", "--rater", "ada"], stdout=subprocess.PIPE, text=True, env=quiet
        )
        assert self.process.stdout is not None
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            found = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", line)
            if found:
                self.base, self.token = found[1], found[2]
                break

    def ask(self, path, sent=None):
        """Send a request as the page does; return its JSON."""
        return json.loads(self.read(path, sent))

    def read(self, path, sent=None):
        """Send a request as the page does; return the bytes."""
        headers = {"X-Guerdon-Token": self.token, "Content-Type": "application/json"}
        headers |= {} if sent is None else {"Origin": self.base}
        data = None if sent is None else json.dumps(sent).encode()
        with urllib.request.urlopen(urllib.request.Request(self.base + path, data, headers), timeout=30) as response:
            return response.read()

    def stop(self, by):
        """Send a signal; return the exit status and what was printed."""
        self.process.send_signal(by)
        rest, _ = self.process.communicate(timeout=30)
        return self.process.returncode, "".join(self.lines) + rest


def test_a_killed_server_goes_on_with_every_answer(clips, tmp_path):
    out = tmp_path / "answers.jsonl"
    first = Server(clips, out)
    pair = first.ask("/state?rater=ada")["pair"]["id"]
    assert b"\xff\xd8\xff" in first.read(f"/clip?pair={pair}&side=first")  # frames as JPEG, whatever the codec
    first.ask("/answer", {"pair": pair, "rater": "ada", "choice": "first"})
    first.stop(signal.SIGKILL)
    assert [(answer.pair, answer.choice) for answer in read_answers(out)] == [(pair, "first")]
    second = Server(clips, out)
    assert second.ask("/state?rater=ada")["pair"]["id"] != pair
    status, printed = second.stop(signal.SIGTERM)
    assert (status, "ada: 1 of" in printed) == (0, True)
    assert printed.splitlines()[-1].startswith(str(out))
    assert len(read_answers(out)) == 1


def test_what_cannot_be_shown_is_explained(clips, tmp_path, capsys):
    out = str(tmp_path / "answers.jsonl")
    assert main(["label", "--data", str(clips), "--out", out, "--camera", "wrist", "--no-open"]) == 2
    assert "wrist" in capsys.readouterr().err
    assert main(["label", "--data", str(clips), "--out", out, "--pairs", str(tmp_path / "no"), "--no-open"]) == 2
    assert "does not exist: expected pairs" in capsys.readouterr().err
    made = ["collect", "--env", "mujoco/reach", "--episodes", "2", "--states-only", "--out", str(tmp_path / "states")]
    assert main(made) == 0
    assert main(["label", "--data", str(tmp_path / "states"), "--out", out, "--no-open"]) == 2
    assert "frames" in capsys.readouterr().err
    assert main(["label", "--help"]) == 0
