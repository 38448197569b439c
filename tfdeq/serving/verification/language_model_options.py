"""Verification requests for every token, position and option of a language model, and invalid rows."""

from collections.abc import Callable, Sequence

import numpy as np

from tfdeq.models.token_model import TokenModel
from tfdeq.serving.server.isolated import Request
from tfdeq.serving.signatures.language_model_signatures import signature_names
from tfdeq.serving.signatures.signature import INVALID
from tfdeq.serving.signatures.text import Generate, Score, ServingDefault, get, of
from tfdeq.serving.verification.checks import ASKED_SETTINGS, NEVER, Check, Outputs, above_limit
from tfdeq.serving.verification.language_model_checks import KerasModel, request

# For tokens in random order a solve may not converge. This many applications are enough to
# distinguish weights, and few enough that rounding does not grow.
_FEW_STEPS = 4
_ROWS = 32  # in a request for every token
_HOT = 20.0  # a temperature at which almost all tokens are about equally likely
_SEEDS = 20  # number of tries to find draws that options change
# The outputs of every signature for an example that cannot be answered.
_INVALID = {"residual": np.finfo(np.float32).max, "steps": 0, "status": INVALID}


def every_token_requests(model: TokenModel) -> list[Request]:
    """Full-length rows in which every token id is read and predicted, with few applications.

    They use every row of the embedding, every column of the output and every position.
    """
    length, size = model.sequence_length, model.vocabulary_size
    # The first token is not predicted, and nothing is predicted from the last.
    inside = length - 2
    rows = np.arange(size, dtype=np.int32)[:, None]
    signature = ServingDefault.name  # for shorter models, each token alone
    if inside > 0:
        count = -(-size // inside)
        # Spread, so that no row has only rare tokens; the ids repeat to fill the rows.
        ids = np.resize(np.arange(size, dtype=np.int32), [inside, count]).T
        rows = np.concatenate([ids[:, -1:], ids, ids[:, :1]], axis=1)
        signature = Score.name
    found = [
        _with_settings(model, "every token", signature, rows[start : start + _ROWS])
        for start in range(0, len(rows), _ROWS)
    ]
    last = _with_settings(model, "every position", ServingDefault.name, rows[:1])
    return [*found, last]


def settings_requests(model: TokenModel, windows: np.ndarray, limit: int) -> list[Request]:
    """One text with each setting alone, with both, and with max_steps above the version's limit.

    Args:
        limit: the version's max_steps_limit.
    """
    found = []
    for signature in of(model):
        settings = list(ASKED_SETTINGS)
        if signature.one_solve:
            settings.append(above_limit(limit))
        tolerances, steps = np.transpose(settings)
        tokens = np.repeat(windows[:1], len(settings), axis=0)
        found.append(
            request(
                model,
                "settings",
                signature.name,
                tokens,
                np.full(len(tokens), max(1, tokens.shape[1] - 3)),
                tolerances,
                steps,
            )
        )
    return found


def generate_requests(
    model: TokenModel, windows: np.ndarray, keras_model: KerasModel
) -> list[Request]:
    """One prompt with each option of `generate`, chosen so that it changes the model's answer."""
    if Generate.name not in signature_names(model):
        return []
    prompt = windows[:1, : max(1, windows.shape[1] // 3)]
    room = model.sequence_length - prompt.shape[1]
    if room < 1:
        return []
    new = min(6, room)

    def answer(**options):
        given = {"tokens": prompt, "max_new_tokens": new, **options}
        return keras_model.generate(given)["tokens"].tolist()

    greedy = answer()
    seeds = range(_SEEDS)
    hot = next((seed for seed in seeds if answer(temperature=_HOT, seed=seed) != greedy), seeds[-1])
    plain = {"temperature": _HOT, "seed": hot}
    drawn = answer(**plain)
    rows: list[dict[str, float]] = [
        {},
        plain,
        _other(answer, drawn, [{**plain, "seed": seed} for seed in seeds if seed != hot]),
        _other(answer, drawn, [{**plain, "seed": seed, "temperature": 0.7} for seed in seeds]),
        {**plain, "top_k": 1},
        {**plain, "top_k": 2},
        {**plain, "top_p": 1e-3},
        {**plain, "top_p": 0.3},
        {"stop_token": greedy[0]},
        {"stop_token": greedy[new // 2]},
        {"max_new_tokens": 1},
        {"max_new_tokens": 0},
        {"max_new_tokens": model.sequence_length + 5},
    ]
    tokens = np.repeat(prompt, len(rows), axis=0)
    asked = request(model, "options", Generate.name, tokens, np.full(len(rows), prompt.shape[1]))
    asked.inputs["max_new_tokens"][:] = new
    for place, row in enumerate(rows):
        for option, value in row.items():
            asked.inputs[option][place] = value
    return [asked]


def invalid_requests(model: TokenModel, windows: np.ndarray) -> list[Request]:
    """Rows that cannot be answered: with invalid lengths, or with ids that are not tokens."""
    length = windows.shape[1]
    lengths = np.array([0, -3, length + 1, 2**31 - 1, -(2**31), length, length, length])
    tokens = np.repeat(windows[:1], len(lengths), axis=0)
    tokens[5, 0], tokens[6, -1], tokens[7, -1] = -1, model.vocabulary_size, 2**31 - 1
    return [
        request(model, "invalid", signature, tokens, lengths)
        for signature in signature_names(model)
    ]


def check_invalid(requests: Sequence[Request], outputs: Sequence[Outputs], runtime: str) -> Check:
    """Checks that every row is marked as invalid, with the values that the card documents for such rows."""
    wrong = []
    for asked, output in zip(requests, outputs, strict=True):
        for name, value in output.items():
            expected = _when_invalid(asked, name, value)
            rows = [
                row
                for row in range(len(value))
                if not np.allclose(value[row], np.broadcast_to(expected, value.shape)[row], 1e-5)
            ]
            wrong += [
                f"{asked.signature}, length {asked.inputs['lengths'][row]}: {name} is no invalid "
                "example's"
                for row in rows
            ]
    count = sum(len(asked.inputs["lengths"]) for asked in requests)
    text = f"{count} rows that cannot be answered have the status {INVALID}"
    if wrong:
        text = f"{wrong[0]} ({len(wrong)} findings)"
    return Check(f"{runtime}: invalid rows are marked", not wrong, text, {"wrong": wrong})


def _when_invalid(asked: Request, name: str, value: np.ndarray) -> np.ndarray | float:
    """Returns the required output of an example that cannot be answered."""
    if name == "log_probabilities":
        return -np.log(np.float32(value.shape[1]))
    return _INVALID[name] if name in _INVALID else get(asked.signature).invalid(name, asked.inputs)


def _other(
    answer: Callable[..., list[int]], drawn: list[int], options: list[dict[str, float]]
) -> dict[str, float]:
    """Returns the first options with a different answer; the last if there are none."""
    return next((each for each in options if answer(**each) != drawn), options[-1])


def _with_settings(model: TokenModel, name: str, signature: str, tokens: np.ndarray) -> Request:
    count, length = tokens.shape
    few = np.full(count, _FEW_STEPS)
    return request(
        model, name, signature, tokens, np.full(count, length), np.full(count, NEVER), few
    )
