"""Information that the caches leak between API keys."""

from __future__ import annotations

import random
import statistics
import time

import httpx

from bench.harness.chat_requests import build_request
from bench.harness.server_process import ServerProcess
from bench.hostile.attack_table import AttackTable
from bench.hostile.connections import API_KEYS, ATTACKER_KEY, VICTIM_KEY
from bench.hostile.images import build_png, encode_image_url

TRIALS = 80
CALIBRATION = 12  # images that the attacker sends twice
ACCURACY_LIMIT = 0.6
SIDE = 336  # pixels


class TimingAttack:
    """Infers from the times of its own answers whether another key has sent an image.

    Attributes:
        signals: Name of a signal -> seconds of an answer.
    """

    signals = ("time to first token", "timings.prefill")

    def __init__(self, client: httpx.Client, rng: random.Random) -> None:
        self._client = client
        self._rng = rng

    def draw_image(self) -> str:
        """Return an image of noise."""
        pixels = self._rng.randbytes(3 * SIDE * SIDE)
        rows = b"".join(b"\0" + pixels[3 * SIDE * row : 3 * SIDE * (row + 1)] for row in range(SIDE))
        return encode_image_url(build_png(SIDE, SIDE, pixels=rows))

    def measure(self, image: str, key: str) -> dict[str, float]:
        """Send an image and return the seconds of each signal."""
        started_at = time.perf_counter()
        headers = {"authorization": f"Bearer {key}"}
        answer = self._client.post("/v1/chat/completions", json=build_request(image, max_tokens=1), headers=headers)
        elapsed = time.perf_counter() - started_at
        prefill = answer.json()["onlyseen"]["timings"]["prefill"]
        return dict(zip(self.signals, (elapsed, prefill), strict=True))

    def run(self) -> dict[str, float]:
        """Return the accuracy of each signal. A guess has 0.5."""
        cold, warm = [], []
        for _ in range(CALIBRATION):
            image = self.draw_image()
            cold.append(self.measure(image, ATTACKER_KEY))
            warm.append(self.measure(image, ATTACKER_KEY))
        correct = dict.fromkeys(self.signals, 0)
        for trial in range(TRIALS):
            image = self.draw_image()
            is_known = trial % 2 == 0
            self.measure(image if is_known else self.draw_image(), VICTIM_KEY)
            seconds = self.measure(image, ATTACKER_KEY)
            for signal in self.signals:
                middle = statistics.mean(statistics.median(each[signal] for each in side) for side in (cold, warm))
                correct[signal] += (seconds[signal] < middle) == is_known
        return {signal: count / TRIALS for signal, count in correct.items()}


def attack_caches_of_keys(table: AttackTable, engine: str) -> None:
    """Guess the images of another key, with caches of each key and, as a control, with shared caches.

    Args:
        table: Gets two rows.
        engine: The engine of the servers.
    """
    for name, flags in (("caches of each key", ()), ("control: shared caches", ("--share-caches",))):
        if not table.is_selected(name):
            continue
        with (
            ServerProcess("--api-keys", API_KEYS, *flags, engine=engine) as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            accuracies = TimingAttack(client, random.Random(0)).run()
        is_control = bool(flags)
        most = max(accuracies.values())
        table.add(
            name,
            TRIALS,
            "accuracy of " + ", ".join(f"{signal}: {accuracy:.2f}" for signal, accuracy in accuracies.items()),
            limit=f"accuracy {'above' if is_control else 'at most'} {ACCURACY_LIMIT}",
            passed=(most > ACCURACY_LIMIT) == is_control,
        )
