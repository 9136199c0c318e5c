"""The label page in a real browser: 100 pairs by key presses, and 100 kills of server, browser or tab.

    python benchmarks/label_kills.py --pairs 100 --kills 100

Speed: one rater answers pairs with the arrow keys, first as fast as the page accepts keys, then after watching each
pair for a fixed time. Kills: keys are pressed without pause while, at a random moment, the server, the browser or the
process of its tab gets SIGKILL, in turns; then what was killed is started again and the rater goes on. The page reports
each answer that it shows as saved; in the end each must stand in the file once, as it was given. Needs Playwright and a
Chromium of the system.
"""

import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import BrowserContext, Error, Page, Playwright, sync_playwright
from rich.console import Console
from rich.table import Table

from common import command_line, write_result
from guerdon.datasets.formats.video import write_video

KEYS = {"ArrowLeft": "first", "ArrowRight": "second", "ArrowDown": "tie", "ArrowUp": "skip"}
SAVED = "document.addEventListener('guerdon-saved', (event) => saved(event.detail));"
RATER = "ada"


def make_clips(folder: Path, episodes: int = 60, frames: int = 40) -> None:
    """Write clips of a dot that moves at a speed of its own."""
    folder.mkdir()
    lines: list[str] = []
    for episode in range(episodes):
        pictures = np.full((frames, 3, 120, 160), 210, np.uint8)
        for frame in range(frames):
            x = 10 + int(frame * (1 + episode % 7) / 3)
            pictures[frame, :, 50:70, x : x + 20] = np.array([20, 90, 200], np.uint8)[:, None, None]
        write_video(folder / f"{episode}.mp4", pictures, 10)
        lines.append(json.dumps({"file": f"{episode}.mp4", "instruction": "move the dot", "fps": 10, "frames": frames}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


class Session:
    """A server and a browser that can be killed and started again.

    Args:
        playwright: Playwright.
        folder: Folder with ``data``; the answers go into it.
        name: Stem of the file of answers.
        pairs: Number of pairs.
    """

    def __init__(self, playwright: Playwright, folder: Path, name: str, pairs: int) -> None:
        self.answers = folder / f"{name}.jsonl"
        self.saved: list[dict[str, Any]] = []
        self.starts: list[float] = []
        self._playwright, self._folder, self._pairs = playwright, folder, pairs
        self._profile = folder / f"profile_{name}"
        self._executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        self.server: subprocess.Popen[str] | None = None
        self.context: BrowserContext | None = None
        self.page: Page | None = None
        self.address = ""

    def start(self) -> Page:
        """Start what is not running, open the page and wait for a pair."""
        begun = time.perf_counter()
        if self.server is None:
            command = [sys.executable, "-m", "guerdon.cli", "label", "--data", str(self._folder / "data"), "--no-open"]
            command += ["--out", str(self.answers), "--count", str(self._pairs), "--seconds", "2", "--rater", RATER]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
            assert self.server.stdout is not None
            self.address = next(line.strip() for line in self.server.stdout if "token=" in line)
        if self.context is None:
            shutil.rmtree(self._profile, ignore_errors=True)
            self.context = self._playwright.chromium.launch_persistent_context(
                str(self._profile), executable_path=self._executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            self.context.expose_binding("saved", lambda source, detail: self.saved.append(detail))
            self.context.add_init_script(SAVED)
            self.page = None
        if self.page is None:
            self.page = self.context.new_page()
        self.page.goto(self.address)
        self.page.wait_for_selector("body[data-phase=ready], body[data-phase=done]", timeout=120_000)
        self.starts.append(time.perf_counter() - begun)
        return self.page

    def kill(self, what: str) -> None:
        """Kill the server, the browser or the process of its tab with SIGKILL."""
        if what == "server":
            assert self.server is not None
            self.server.send_signal(signal.SIGKILL)
        else:
            browser, tabs = self._processes()
            for process in [browser] if what == "browser" else tabs:
                os.kill(process, signal.SIGKILL)

    def recover(self, what: str) -> None:
        """Forget what was killed."""
        if what == "server" and self.server is not None:
            self.server.communicate()
            self.server = None
        elif what == "browser":
            self._quietly(self.context)
            self.context = self.page = None
        else:
            self._quietly(self.page)
            self.page = None

    def stop(self) -> None:
        """Close the browser and stop the server with SIGTERM."""
        self._quietly(self.context)
        if self.server is not None:
            self.server.terminate()
            self.server.communicate()

    def _quietly(self, closing: BrowserContext | Page | None) -> None:
        try:
            if closing is not None:
                closing.close()
        except Error:
            pass  # it is gone already

    def _processes(self) -> tuple[int, list[int]]:
        """Find this session's own browser by its profile folder, and those of its descendants that show pages."""
        parents: dict[int, int] = {}
        commands: dict[int, list[str]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_text().split("\0")
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it has ended
            commands[int(entry.name)] = command
        mine = f"--user-data-dir={self._profile}"
        browser = next(p for p, c in commands.items() if mine in c and not any(a.startswith("--type=") for a in c))

        def below(process: int) -> bool:
            return process == browser or (process in parents and below(parents[process]))

        return browser, [p for p, c in commands.items() if "--type=renderer" in c and below(p)]


def answer_all(session: Session, watched: float, draw: random.Random) -> dict[str, float]:
    """Answer every pair, each after it was watched for a time, and measure."""
    page = session.start()
    times: list[float] = []
    begun = time.perf_counter()
    while page.get_attribute("body", "data-phase") != "done":
        time.sleep(watched)
        pressed = time.perf_counter()
        page.keyboard.press(draw.choice(list(KEYS)))
        page.wait_for_selector("body[data-phase=ready], body[data-phase=done]", timeout=60_000)
        times.append(time.perf_counter() - pressed)
    seconds = time.perf_counter() - begun
    session.stop()
    return {
        "watched": watched,
        "pairs": len(times),
        "seconds": seconds,
        "median_wait": statistics.median(times),
        "longest_wait": max(times),
    }


def press_until(page: Page, end: float, draw: random.Random, lock: threading.Event) -> int:
    """Press keys until a time, or until the page is gone; return the number of presses."""
    pressed = 0
    try:
        while time.perf_counter() < end or not lock.is_set():
            page.keyboard.press(draw.choice(list(KEYS)))
            page.wait_for_timeout(draw.choice([0, 0, 5, 20, 60]))
            pressed += 1
    except Error:
        pass  # the browser or the tab was killed
    return pressed


def kill_round(session: Session, what: str, draw: random.Random) -> int:
    """Press keys and kill at a random moment; return the number of presses."""
    page = session.start()
    moment = draw.uniform(0.05, 3.0)
    begun, done = time.perf_counter(), threading.Event()

    def strike() -> None:
        time.sleep(max(0.0, begun + moment - time.perf_counter()))
        try:
            session.kill(what)
        finally:
            done.set()

    thread = threading.Thread(target=strike)
    thread.start()
    pressed = press_until(page, begun + moment + 0.2, draw, done)
    thread.join()
    session.recover(what)
    return pressed


def judge(session: Session) -> dict[str, int]:
    """Compare what the page showed as saved with the lines of the file."""
    lines = [json.loads(line) for line in session.answers.read_text().splitlines()]
    counts = Counter((line["rater"], line["pair"]) for line in lines)
    choices = {line["pair"]: line["choice"] for line in lines}
    shown = {answer["pair"]: answer["choice"] for answer in session.saved}
    aside = session.answers.with_name(session.answers.name + ".torn")
    return {
        "shown_as_saved": len(shown),
        "in_file": len(lines),
        "lost": sum(pair not in choices for pair in shown),
        "changed": sum(choices.get(pair, choice) != choice for pair, choice in shown.items()),
        "doubled": sum(count - 1 for count in counts.values()),
        "saved_but_not_shown": len(set(choices) - set(shown)),
        "torn_lines": len(aside.read_bytes().splitlines()) if aside.exists() else 0,
    }


def main() -> None:
    """Measure and print."""
    parser = command_line(__doc__, "label_kills")
    parser.add_argument("--pairs", type=int, default=100, help="pairs that are answered for speed")
    parser.add_argument("--watch", type=float, default=2.0, help="seconds that a pair is watched")
    parser.add_argument("--kills", type=int, default=100, help="number of kills in all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    kinds = [kind for kind, _ in zip(itertools.cycle(["server", "browser", "server", "tab"]), range(options.kills))]
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        make_clips(folder / "data")
        speed = Table("watched", "pairs", "seconds", "median wait", "longest wait")
        runs: list[dict[str, float]] = []
        for watched in (0.0, options.watch):
            session = Session(playwright, folder, f"speed_{len(runs)}", options.pairs)
            runs.append(answer_all(session, watched, draw))
            row = runs[-1]
            assert judge(session)["in_file"] == options.pairs
            speed.add_row(
                *(f"{row[key]:.3g}" for key in ("watched", "pairs", "seconds", "median_wait", "longest_wait"))
            )
        Console().print(speed)
        session = Session(playwright, folder, "kills", 20_000)
        pressed = 0
        try:
            for number, kind in enumerate(kinds, 1):
                pressed += kill_round(session, kind, draw)
                if number % 10 == 0 or number == len(kinds):
                    print(number, "kills", judge(session), flush=True)
            session.start()
        finally:
            session.stop()
        verdict = judge(session)
    table = Table("kills", "presses", *verdict)
    table.add_row(str(len(kinds)), str(pressed), *map(str, verdict.values()))
    Console().print(table)
    record = {"seed": options.seed, "speed": runs, "kills": dict(Counter(kinds)), "presses": pressed, **verdict}
    write_result(options.out, record | {"median_restart_seconds": statistics.median(session.starts)})
    if verdict["lost"] or verdict["changed"] or verdict["doubled"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
