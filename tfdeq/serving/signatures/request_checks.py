"""What a request goes through before it shares a batch: checks of its own, and a shape that others have.

A request that fails a check gets an error, and no other request sees it. Rows of it that cannot be
answered get the status INVALID. Texts are padded to one of a few widths, so that the requests of a
queue have one shape.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from tfdeq.serving.signatures.batching import SIZES, Batching, Queues
from tfdeq.serving.signatures.signature import Signature, input_specs, trace

# Numbers of a request and its answer together, unless the largest batch has more: 64 MiB of float32.
MOST_VALUES = 2**24
_NARROWEST = 16
# Input -> what it says of each row of another: how many positions count.
_LENGTHS = {"lengths": "tokens", "equilibrium_lengths": "equilibrium"}

_Tensors = Mapping[str, tf.Tensor]
_Specs = Mapping[str, tf.TensorSpec]


def guarded(
    signature: Signature,
    name: str,
    max_request_values: int,
    queues: Queues | None = None,
    widths: Sequence[int] = (),
) -> Signature:
    """Puts checks in front of a signature, and joins the requests that pass them.

    Args:
        signature: what a batch of rows is answered with.
        name: the signature's.
        max_request_values: numbers that a request and its answer may have together.
        queues: where requests wait for each other. None: each is answered alone.
        widths: of a language model, those that texts are padded to; ascending. () for other models,
            whose requests are joined only where `can_join` says so.
    """
    function, specs = signature.function, input_specs(signature.function)
    batched = None if queues is None else _in_order(function, specs)

    def answer(given: _Tensors, queue: str) -> _Tensors:
        if queues is None:
            return function(**given)
        values = queues.join(batched, [given[each] for each in specs], f"{name}_{queue}")
        shapes = {each: output.shape for each, output in function.structured_outputs.items()}
        return {
            each: tf.ensure_shape(value, shape)
            for (each, shape), value in zip(shapes.items(), values, strict=True)
        }

    def checked(**given: tf.Tensor) -> dict[str, tf.Tensor]:
        given, rows = _checked(name, given, specs, function.structured_outputs, max_request_values)
        if widths and queues is not None:
            outputs = _at_a_width(given, widths, answer)
        else:
            outputs = answer(given, "rows")
        return {each: value[:rows] for each, value in outputs.items()}

    return signature._replace(
        function=trace(checked, specs),
        joined=queues is not None,
        max_request_values=max_request_values,
    )


def guard_all(
    signatures: Mapping[str, Signature],
    batching: Batching | None,
    *,
    text_length: int | None = None,
    jit_compile: bool = False,
    max_request_values: int | None = None,
) -> dict[str, Signature]:
    """Puts checks in front of a model's signatures; see `guarded`.

    Args:
        signatures: by name.
        batching: how requests are joined; None: not at all.
        text_length: positions that a language model reads; None for other models, of which only
            signatures are joined whose rows have one size: padding would change what they say.
        jit_compile: whether the signatures are compiled. Texts then have one width, since each other
            would be compiled at the first request that needs it.
        max_request_values: numbers that a request and its answer may have together. None: 2²⁴, or
            those of the largest batch, if they are more.

    Raises:
        ValueError: a limit that one row exceeds.
    """
    widths: Sequence[int] = ()
    if text_length is not None:
        widths = (text_length,) if jit_compile else text_widths(text_length)
    rows = max(SIZES if batching is None else batching.sizes)
    if max_request_values is None:
        max_request_values = max(MOST_VALUES, _values_of(signatures, rows, text_length or 1))
    elif max_request_values < _values_of(signatures, 1, text_length or 1):
        raise ValueError(
            f"max_request_values must be at least {_values_of(signatures, 1, text_length or 1):,}, the "
            f"numbers of one row and its answer; received {max_request_values:,}."
        )
    queues = None if batching is None else Queues(batching)
    return {
        name: guarded(
            signature,
            name,
            max_request_values,
            queues if widths or can_join(signature) else None,
            widths,
        )
        for name, signature in signatures.items()
    }


def can_join(signature: Signature) -> bool:
    """Whether all rows of a signature's requests have one shape, so that none would be padded."""
    specs = input_specs(signature.function).values()
    return all(spec.shape[1:].is_fully_defined() for spec in specs)


def text_widths(text_length: int) -> list[int]:
    """Returns the widths that texts of at most a length are padded to: it, its half, its quarter, …"""
    widths = [text_length]
    while widths[0] > _NARROWEST:
        widths.insert(0, max(_NARROWEST, math.ceil(widths[0] / 2)))
    return widths


def _values_of(signatures: Mapping[str, Signature], rows: int, free: int) -> int:
    """Numbers of the largest request of so many rows and its answer, over all signatures.

    Args:
        free: what the sizes that a signature leaves open are, such as a text's length.
    """
    return rows * max(
        sum(
            _row_values(tensor.shape, free)
            for tensor in [
                *input_specs(signature.function).values(),
                *signature.function.structured_outputs.values(),
            ]
        )
        for signature in signatures.values()
    )


def _row_values(shape: tf.TensorShape, free):
    """Numbers of a row; of sizes that the shape leaves open there are `free` together."""
    sizes = shape.as_list()[1:] if shape.rank is not None else [None]
    fixed = math.prod(size for size in sizes if size is not None)
    return fixed * free if None in sizes else fixed


def _in_order(function, specs: _Specs) -> tf.types.experimental.ConcreteFunction:
    """The function of the specs' tensors in their order, which returns a list."""

    def positional(*values):
        outputs = function(**dict(zip(specs, values, strict=True)))
        return [outputs[each] for each in function.structured_outputs]

    specs_in_order = [tf.TensorSpec(spec.shape, spec.dtype) for spec in specs.values()]
    # BatchFunction runs its function as it is: not optimised, which a model may need twice the time for,
    # and not compiled where it should be. A call in it that is not inlined is run as any other.
    call = tf.function(
        positional, autograph=False, experimental_attributes={"_noinline": True}
    ).get_concrete_function(*specs_in_order)
    return tf.function(lambda *values: call(*values), autograph=False).get_concrete_function(
        *specs_in_order
    )


def _checked(
    name: str, given: _Tensors, specs: _Specs, outputs: _Tensors, max_request_values: int
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """The request's tensors, at least one row of each, and how many rows it has itself."""
    # A server takes tensors of any rank and size; this op looks at what came.
    given = {each: tf.ensure_shape(value, specs[each].shape) for each, value in given.items()}
    counts = tf.stack([tf.shape(value)[0] for value in given.values()])
    rows = counts[0]
    free = tf.reduce_max(tf.stack([_open_size(value) for value in given.values()]))
    values = sum(tf.size(value, tf.int64) for value in given.values())
    values += tf.cast(rows, tf.int64) * sum(
        _row_values(out.shape, free) for out in outputs.values()
    )
    same_rows = f"{name}: all inputs must have the same number of rows; {', '.join(given)} have"
    small_enough = (
        f"{name}: a request and its answer may have {max_request_values} numbers together; send fewer "
        "or shorter rows. These would have"
    )
    checks = [
        tf.debugging.Assert(tf.reduce_all(counts == rows), [same_rows, counts], len(given)),
        tf.debugging.Assert(values <= max_request_values, [small_enough, values]),
    ]
    with tf.control_dependencies(checks):
        missing = tf.maximum(1 - rows, 0)
        return {
            each: tf.pad(value, [[0, missing], *[[0, 0]] * (value.shape.rank - 1)])
            for each, value in given.items()
        }, rows


def _open_size(value: tf.Tensor) -> tf.Tensor:
    """int64: the product of the sizes that a tensor's spec leaves open, but the rows'."""
    sizes = tf.shape(value, tf.int64)
    places = [place for place, size in enumerate(value.shape[1:], 1) if size is None]
    return tf.reduce_prod(tf.gather(sizes, tf.constant(places, tf.int32)))


def _at_a_width(
    given: _Tensors, widths: Sequence[int], answer: Callable[[_Tensors, str], _Tensors]
) -> dict[str, tf.Tensor]:
    """Answers texts at the least width that holds them; the answer is as wide as the request."""
    length = tf.shape(given["tokens"])[1]
    given = {**given, **_own_lengths(given, widths[-1])}
    least = tf.reduce_max(given["lengths"])

    def at(width):
        padded = {each: _to_width(value, width) for each, value in given.items()}
        outputs = answer(padded, str(width))
        return {each: _to_width(value, length) for each, value in outputs.items()}

    place = tf.reduce_sum(tf.cast(least > tf.constant(widths[:-1], tf.int32), tf.int32))
    return tf.switch_case(place, [lambda width=width: at(width) for width in widths])


def _own_lengths(given: _Tensors, most: int) -> dict[str, tf.Tensor]:
    """The lengths, before padding could make room for more than a request has: 0 where none can be."""
    found = {}
    for each, of in _LENGTHS.items():
        if each in given:
            there = tf.minimum(tf.shape(given[of])[1], most)
            possible = (given[each] >= 1) & (given[each] <= there)
            found[each] = tf.where(possible, given[each], 0)
    return found


def _to_width(value: tf.Tensor, width) -> tf.Tensor:
    """Cuts or fills, with zeros, the second dimension of a tensor that leaves it open."""
    if value.shape.rank < 2 or value.shape[1] is not None:
        return value
    behind = tf.maximum(width - tf.shape(value)[1], 0)
    return tf.pad(value, [[0, 0], [0, behind], *[[0, 0]] * (value.shape.rank - 2)])[:, :width]
