"""How long short texts wait for a long one that shares their batches, in TensorFlow's C++ runtime.

    python -m benchmarks.serving.long_texts [--results=... --document=docs/serving_benchmarks.md]

31 clients ask for one token each, alone and beside a client that asks for 100: in one call of
`generate`, and in segments, as `tfdeq.serving.Client.generate` and `stream` do. The requests arrive
together, and the version joins those that arrive within its timeout, so that not all of them share the
long one's batch: of a turn's short texts, the median and the last one are timed. The model is the preset
that comes with tfdeq. The cases alternate; a case's figure is the median over its turns, a ratio is the
median of the turns' own ratios, because other work on the machine changes between turns.
"""

import pathlib
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.engine.speed import processor
from benchmarks.results.tables import markdown_table
from tfdeq.models import LanguageModel
from tfdeq.programs import program
from tfdeq.programs.workdir import write_json
from tfdeq.serving.client import client_text
from tfdeq.serving.server.runtime import Runtime
from tfdeq.serving.signatures.text.generate import greedy
from tfdeq.serving.versions import saved_model

FLAGS = flags.FLAGS

SHORT, LONG_TOKENS = 31, 100
PROMPT = "def read(path):\n    "
TURNS = 15
RESULTS = "benchmarks/results/serving_long_texts.json"
TITLE = "## Short texts beside a long one"

# Case -> (the signature of the short texts, whether and how the long text is asked for).
CASES = {
    "alone, segments": ("generate_first", None),
    "beside one call": ("generate", "generate"),
    "alone, one call": ("generate", None),
    "beside segments": ("generate_first", "segments"),
}


class Asker:
    """Asks a version as clients ask a server, with settings for one text."""

    def __init__(self, model: Runtime):
        self._model = model

    def predict(self, inputs: Mapping[str, Any], signature: str) -> dict[str, np.ndarray]:
        """Returns the answer for one text."""
        signed = self._model.signatures[signature].inputs
        settings = {"tolerance": [0.0], "max_steps": [0]}
        given = {**settings, **inputs}
        dtypes = {"tolerance": np.float32, "temperature": np.float32, "top_p": np.float32}
        return self._model.run(
            signature,
            {
                name: np.asarray(
                    given[name],
                    np.float32 if name.startswith("state_") else dtypes.get(name, np.int32),
                )
                for name in signed
            },
        )

    def short(self, signature: str) -> None:
        """Asks for one token."""
        tokens = client_text.encode_text(PROMPT, None)
        inputs = {"tokens": tokens[None], "lengths": [len(tokens)], **greedy(1, 1)}
        self.predict({**inputs, "segment_tokens": [1]}, signature)

    def long(self, how: str) -> np.ndarray:
        """Asks for LONG_TOKENS tokens, and returns them."""
        settings = {name: value[0] for name, value in greedy(1, LONG_TOKENS).items()}
        if how == "segments":
            parts = list(client_text.segments(self.predict, PROMPT, None, 1, 16, settings))
            return client_text.together(parts).tokens
        tokens = client_text.encode_text(PROMPT, None)
        inputs = {"tokens": tokens[None], "lengths": [len(tokens)], **greedy(1, LONG_TOKENS)}
        return self.predict(inputs, how)["tokens"][0, :LONG_TOKENS]


def together(calls: Sequence[Callable[[], Any]]) -> tuple[list[float], list[Any]]:
    """Makes calls at the same time; returns the seconds of each, and the results."""
    barrier = threading.Barrier(len(calls))
    seconds, results = [0.0] * len(calls), [None] * len(calls)

    def call(place: int) -> None:
        barrier.wait()
        started = time.perf_counter()
        results[place] = calls[place]()
        seconds[place] = time.perf_counter() - started

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, results


def measure(asker: Asker, turns: int) -> dict[str, Any]:
    """Returns seconds for each case, of a turn's median and last short text and of the long one."""
    found: dict[str, dict[str, list[float]]] = {
        name: {case: [] for case in CASES} for name in ("median", "last", "long")
    }
    tokens: dict[str, list[int]] = {}
    for turn in range(-1, turns):  # the first calls load kernels
        for case, (signature, how) in CASES.items():
            calls = [] if how is None else [lambda how=how: asker.long(how)]
            calls += [lambda signature=signature: asker.short(signature)] * SHORT
            seconds, results = together(calls)
            if turn < 0:
                continue
            found["median"][case].append(float(np.median(seconds[-SHORT:])))
            found["last"][case].append(max(seconds[-SHORT:]))
            if how is not None:
                found["long"][case].append(seconds[0])
                tokens[case] = results[0].tolist()
    ratios = {
        f"{name}, {how}": np.divide(found[name][f"beside {how}"], found[name][f"alone, {how}"])
        for name in ("median", "last")
        for how in ("one call", "segments")
    }
    ratios["long"] = np.divide(found["long"]["beside segments"], found["long"]["beside one call"])
    return {
        "turns": turns,
        "seconds": {
            name: {case: float(np.median(each)) for case, each in cases.items() if each}
            for name, cases in found.items()
        },
        "ratios": {name: float(np.median(each)) for name, each in ratios.items()},
        "same_tokens": tokens["beside one call"] == tokens["beside segments"],
    }


def section(results: Mapping[str, Any]) -> str:
    """Returns the part of docs/serving_benchmarks.md about these measurements."""
    ratios = results["ratios"]
    same = "the same" if results["same_tokens"] else "different"
    rows = []
    for how, shown in (("one call", "in one call of `generate`"), ("segments", "in segments")):
        cells = [shown]
        for name in ("median", "last"):
            times = results["seconds"][name]
            alone, beside = times[f"alone, {how}"], times[f"beside {how}"]
            ratio = ratios[f"{name}, {how}"]
            cells += [f"{1e3 * alone:,.0f}", f"{1e3 * beside:,.0f}", f"{ratio:.2f}"]
        cells.append(f"{1e3 * results['seconds']['long'][f'beside {how}']:,.0f}")
        rows.append(cells)
    columns = (
        *("the long text", "median short one, alone", "beside it", "ratio"),
        *("last short one, alone", "beside it", "ratio", "the long one"),
    )
    return (
        f"{TITLE}\n\n"
        f"`python -m benchmarks.serving.long_texts`: {SHORT} requests for one token, beside one for "
        f"{LONG_TOKENS} tokens that arrives with them, on {results['machine']}; the preset "
        f"`tfdeq_bytes_small`. Medians of {results['turns']} turns, in milliseconds. Not all requests share "
        "the long one's batch; the last one to be answered does.\n\n"
        f"{markdown_table(columns, rows)}\n"
        f"Both ways the long text has {same} tokens. In segments it takes {ratios['long']:.2f} of the time.\n"
    )


def with_section(document: str, results: Mapping[str, Any] | None) -> str:
    """Returns the document with this section as its last one, instead of an earlier one."""
    before = document.split(f"\n{TITLE}\n")[0].rstrip("\n")
    return f"{before}\n" if results is None else f"{before}\n\n{section(results)}"


def main() -> None:
    model = LanguageModel.from_preset("tfdeq_bytes_small")
    with tempfile.TemporaryDirectory(prefix="tfdeq-serving-") as folder:
        path = saved_model.export(model, folder, keras_model=False)
        results = {
            "machine": FLAGS.machine or processor(),
            **measure(Asker(Runtime(path)), FLAGS.turns),
        }
    print(results)
    if FLAGS.results:
        write_json(FLAGS.results, results)
    if FLAGS.document:
        document = pathlib.Path(FLAGS.document)
        document.write_text(with_section(document.read_text(encoding="utf-8"), results), "utf-8")
        print(f"Wrote {FLAGS.document}.")


def define_flags() -> None:
    flags.DEFINE_integer("turns", TURNS, "How often each case is measured.", lower_bound=1)
    flags.DEFINE_string("machine", None, "What the document calls the machine. Default: its CPU.")
    flags.DEFINE_string("results", None, "JSON to write.")
    flags.DEFINE_string("document", None, "Markdown whose section is written.")


def run() -> None:
    define_flags()
    program.run(main)


if __name__ == "__main__":
    run()
