"""A language model from a preset: text, quality by budget, and a version for TensorFlow Serving.

tfdeq comes with a small trained model of Python sources, one Transformer cell at its equilibrium (Bai,
Kolter, Koltun, arXiv:1909.01377, section 4). This example loads it without training and shows what an
equilibrium adds to a language model: a dial. The budget, the number of evaluations of the cell, is chosen
per call, after training, and each answer says by its residual how far it is from its equilibrium.

The text is the test part of your Python's standard library; TensorFlow Datasets prepares a copy of it in
your home folder the first time. (The model was trained on version 3.11.7; the test part of another
version may have files that it has seen.) At the end a classical model of the same training text is
evaluated on the same bytes: counts of up to seven bytes, smoothed by Witten and Bell's method
(The Zero-Frequency Problem, IEEE Trans. Inf. Theory 37(4), 1991).

Run: python examples/language_model.py [folder for the picture and the exported version]
"""

import pathlib
import sys
import time

import matplotlib.figure
import numpy as np
import tensorflow as tf

import tfdeq
import tfdeq.data
import tfdeq.serving

BUDGETS, WINDOWS, LENGTH, ORDER = (1, 2, 3, 4, 6, 8, 16, 32), 64, 128, 7


def windows(text):
    """Windows [WINDOWS, LENGTH + 1] of a text at equal distances, and where they begin."""
    starts = np.linspace(ORDER, len(text) - LENGTH - 1, WINDOWS).astype(int)
    return text[starts[:, None] + np.arange(LENGTH + 1)].astype("int32"), starts


def keys(text, order):
    """Each byte and the `order` bytes before it as one int64, from the byte at ORDER on."""
    found = np.zeros(len(text) - ORDER, np.int64)
    for back in range(order, -1, -1):
        found = found * 256 + text[ORDER - back : len(text) - back]
    return found


def lookup(found, counts, wanted):
    """The counts of the wanted keys, 0 for those that are not among the sorted found ones."""
    places = np.minimum(np.searchsorted(found, wanted), len(found) - 1)
    return np.where(found[places] == wanted, counts[places], 0)


def count_model(train, test, starts):
    """Bits per byte of the windows by counts. It sees six bytes before each, also outside."""
    places = (starts[:, None] + np.arange(1, LENGTH + 1)).ravel()
    p = np.full(places.shape, 1 / 256)
    for order in range(ORDER):
        wanted = keys(test, order)[places - ORDER]
        found, counts = np.unique(keys(train, order), return_counts=True)
        contexts, first = np.unique(found // 256, return_index=True)
        seen = lookup(contexts, np.add.reduceat(counts, first), wanted // 256)
        kinds = lookup(contexts, np.diff(np.append(first, len(found))), wanted // 256)
        interpolated = (lookup(found, counts, wanted) + kinds * p) / np.maximum(seen + kinds, 1)
        p = np.where(seen > 0, interpolated, p)
    return float(-np.log2(p).mean())


def exported(model, folder, tokens):
    """Exports the model, and returns the largest difference of a request's answer from the model's."""
    path = tfdeq.serving.export(model, folder, max_steps_limit=32)
    version = tf.saved_model.load(str(path))
    request = {
        "tokens": tf.constant(tokens),
        "lengths": tf.fill([len(tokens)], tokens.shape[1]),
        "tolerance": tf.fill([len(tokens)], 1e-4),
        "max_steps": tf.fill([len(tokens)], 32),
    }
    answer = version.signatures["serving_default"](**request)
    logits = model(tokens, tolerance=1e-4, max_steps=32)[:, -1]
    difference = answer["log_probabilities"] - tf.nn.log_softmax(logits)
    print(f"exported to {path.name}: a request's residual is {np.max(answer['residual']):.0e}")
    return float(tf.reduce_max(abs(difference)))


def main(folder="."):
    model = tfdeq.models.LanguageModel.from_preset("tfdeq_bytes_small")
    print(model.generate("def ", temperature=0.6, seed=1, max_new_tokens=100), "\n")
    data = tfdeq.data.load("python_stdlib")
    rows, starts = windows(data.test)
    bits, residuals = [], []
    for budget in BUDGETS:
        nats, solution = model(
            rows[:, :-1],
            targets=rows[:, 1:],
            max_steps=budget,
            tolerance=1e-6,
            return_solution=True,
        )
        bits.append(float(tf.reduce_mean(nats)) / np.log(2))
        residuals.append(float(tf.reduce_mean(solution.residual)))
        print(
            f"{budget:2} evaluations: {bits[-1]:.3f} bits per byte, mean residual {residuals[-1]:.0e}"
        )
    figure = matplotlib.figure.Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.semilogx(BUDGETS, bits, "o-", base=2)
    axes.set(xlabel="evaluations of the cell", ylabel="bits per byte")
    figure.savefig(pathlib.Path(folder, "language_model.png"), dpi=100)
    difference = exported(model, pathlib.Path(folder, "language_model"), rows[:4, :-1])
    print(f"largest difference of its log-probabilities: {difference:.0e}")
    start = time.perf_counter()
    counted = count_model(data.train, data.test, starts)
    print(f"Counts of up to seven bytes, made in {time.perf_counter() - start:.0f} s from the same text: "
          f"{counted:.3f} bits per byte.")  # fmt: skip
    return {"bits": bits, "residuals": residuals, "difference": difference, "counts": counted}


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".")
