"""Small functions refuse what does not fit, or give the right value, for any argument.

A call of each is in ``CALLS``. Its arguments are changed one at a time, as users change
them: a row too few, a column for a vector, NaN, labels of another type. Shapes are not
checked by jaxtyping here, as outside pytest.
"""

import re
from dataclasses import dataclass, field

import pytest
import torch
from support.refusals import refused
from support.unchecked import unchecked

from fmkit import adapt, evaluate, losses, probe
from fmkit.data import labels as few
from fmkit.models import ngram, pooling
from fmkit.models.transformer import Transformer, TransformerConfig
from fmkit.tasks import libraries, operators, questions, regression

E, P, L, A = map(unchecked, (evaluate, probe, losses, adapt))
D, R = unchecked(operators), unchecked(regression)
N, T = unchecked(ngram), unchecked(pooling)
n, m, k, V = 12, 4, 3, 7


def seeded():
    return torch.Generator().manual_seed(0)


@dataclass
class Call:
    """A call that works, and what may be changed in it."""

    function: object
    tensors: dict[str, torch.Tensor]
    options: dict = field(default_factory=dict)
    drawn: bool = False  # takes a generator
    free: tuple = ()  # arguments whose number of rows is their own
    finite: tuple = ()  # arguments that must not hold NaN
    ends: dict = field(default_factory=dict)  # labels and ids: the first that is none

    def __call__(self, **changed):
        tensors, options = dict(self.tensors), dict(self.options)
        for name, value in changed.items():
            (tensors if name in tensors else options)[name] = value
        drawn = {"generator": seeded()} if self.drawn else {}
        return self.function(*tensors.values(), **options, **drawn)


class Bigrams(torch.nn.Module):
    table = torch.randn(V, V, generator=seeded())

    def forward(self, x):
        return self.table[x]


class Flat(torch.nn.Module):
    m = 4

    def prepare(self, x):
        return x

    def forward(self, x):
        return x


def finetune(x, labels, **options):
    torch.manual_seed(0)
    return A.finetune(Flat(), torch.nn.Linear(m, k), x, labels, **options).losses


def documents(symbols, numbers, operands):
    return D.Documents(symbols, numbers, operands).answers


phi, u = torch.randn(2, n, m, generator=seeded()), torch.randn(n, k, generator=seeded())
y, p = torch.arange(n) % k, u.softmax(dim=1)
ids = torch.randint(V, (3, 5), generator=seeded())
logits = torch.randn(3, 5, V, generator=seeded())
real = torch.arange(5) < torch.tensor([[2], [5], [1]])
sequences = regression.draw_regressions(
    3, examples=6, scales=torch.ones(m), sigma=0.1, generator=seeded()
)
shape = {"context": 20, "width": 8, "layers": 1, "heads": 2, "kv_heads": 1}
reads_pairs = Transformer(TransformerConfig(vocabulary=9, hidden=8, **shape)).eval()
drawn_documents = operators.draw_documents(
    3,
    symbols=operators.symbol_pairs(seen=True),
    operands=operators.operand_pairs(seen=True),
    examples=2,
    generator=seeded(),
)
fitted = P.linear_probe(phi[0], y, classes=k, generator=seeded())
tokens = operators.to_tokens(drawn_documents)
after_tokens = torch.randn(3, 10, operators.VOCABULARY, generator=seeded())
steps = {"steps": 2, "batch_size": 4, "learning_rate": 1e-3}
pairs = {"phi_hat": phi[0], "phi_tilde": phi[1]}
pictures = torch.rand(2, 2, 1, 3, 4, generator=seeded())
texts = {"c": torch.randn(3, 5, m, generator=seeded()), "real": real}
features = {"features": phi[0], "labels": y}
d = drawn_documents

CALLS = {
    "accuracy": Call(
        E.accuracy, {"logits": u, "labels": y}, finite=("logits",), ends={"labels": k}
    ),
    "brier": Call(
        E.brier_score, {"p": p, "labels": y}, finite=("p",), ends={"labels": k}
    ),
    "reliability": Call(
        E.reliability,
        {"confidence": p[:, 0], "correct": y == 0},
        {"bins": 3},
        finite=("confidence",),
    ),
    "knn": Call(
        E.knn_votes,
        {"bank": phi[0], "labels": y, "queries": phi[1]},
        {"classes": k, "neighbours": 3, "tau": 0.1},
        free=("queries",),
        finite=("bank", "queries"),
        ends={"labels": k},
    ),
    "alignment": Call(E.alignment, pairs, finite=("phi_hat", "phi_tilde")),
    "uniformity": Call(E.uniformity, {"phi": phi[0]}, free=("phi",), finite=("phi",)),
    "crossed": Call(
        E.crossed_interval,
        {"values": phi[0]},
        drawn=True,
        free=("values",),
        finite=("values",),
    ),
    "objective": Call(
        P.logistic_objective,
        {**features, "weight": fitted.weight, "bias": fitted.bias},
        {"lambda_": 0.1},
        ends={"labels": k},
    ),
    "path": Call(
        P.logistic_path,
        features,
        {"classes": k, "lambdas": [1.0], "tolerance": 1e-6},
        finite=("features",),
        ends={"labels": k},
    ),
    "probe": Call(
        P.linear_probe,
        features,
        {"classes": k, "tolerance": 1e-4},
        drawn=True,
        finite=("features",),
        ends={"labels": k},
    ),
    "logits": Call(fitted.logits, {"features": phi[0]}, free=("features",)),
    "least squares": Call(
        P.least_squares_probe,
        {"features": phi[0], "targets": u[:, 0]},
        {"ridge": 0.1, "bias": True},
        finite=("features", "targets"),
    ),
    "reconstruction": Call(
        L.reconstruction_loss, {"x_rebuilt": pictures[0], "x": pictures[1]}
    ),
    "simclr": Call(L.simclr_loss, pairs),
    "nt_xent": Call(L.nt_xent_loss, pairs, {"tau": 0.1}),
    "supcon": Call(L.supcon_loss, {"phi": phi[0], "labels": y}, {"tau": 0.1}),
    "next token": Call(L.next_token_loss, {"u": logits, "x": ids}),
    "masked token": Call(L.masked_token_loss, {"u": logits, "x": ids, "masked": real}),
    "finetune": Call(
        finetune,
        {"examples": phi[0], "labels": y},
        steps,
        drawn=True,
        ends={"labels": k},
    ),
    "frozen at": Call(
        lambda examples, rows: A.frozen_outputs_at(Flat(), examples, rows, bar=""),
        {"examples": phi[0], "rows": torch.tensor([1, 3])},
        free=("examples", "rows"),
        ends={"rows": n},
    ),
    "head": Call(A.random_head, {}, {"m": 4, "k": 3}, drawn=True),
    "few": Call(
        unchecked(few).few_labels,
        {"labels": y},
        {"per_class": 2},
        drawn=True,
        free=("labels",),
    ),
    "nats": Call(
        lambda windows: E.token_nats(Bigrams(), [windows], bar=""),
        {"windows": ids},
        free=("windows",),
    ),
    "strided": Call(
        lambda sequence, **options: E.strided_nats(
            Bigrams(), sequence, batch_size=2, bar="", **options
        ),
        {"sequence": ids.flatten()},
        {"context": 4, "stride": 2},
        free=("sequence",),
    ),
    "bits": Call(
        lambda **options: E.bits_per_byte(text="ab", **options),
        {},
        {"nats": 1.0, "tokens": 2},
    ),
    "last token": Call(T.last_token, texts),
    "first token": Call(T.first_token, texts),
    "mean of tokens": Call(T.mean_of_tokens, texts),
    "n-gram": Call(
        N.fit_ngram,
        {"tokens": ids.flatten()},
        {"vocabulary": V, "order": 2},
        free=("tokens",),
    ),
    "documents": Call(
        documents,
        {"symbols": d.symbols, "operators": d.operators, "operands": d.operands},
        ends={"symbols": len(operators.SYMBOLS), "operators": 9, "operands": 20},
    ),
    "answer scores": Call(
        D.answer_scores,
        {"u": after_tokens, "x": tokens},
        ends={"x": operators.VOCABULARY},
    ),
    "draw documents": Call(
        lambda count, **options: D.draw_documents(count, **options),
        {},
        {
            "count": 3,
            "symbols": operators.symbol_pairs(seen=True),
            "operands": operators.operand_pairs(seen=True),
            "examples": 2,
        },
        drawn=True,
    ),
    "candidates": Call(
        lambda **options: questions.candidates(
            questions.load_task("capitals"), **options
        ),
        {},
        {"i": 2, "count": 3},
        drawn=True,
    ),
    "draw regressions": Call(
        lambda count, **options: R.draw_regressions(count, **options),
        {},
        {"count": 3, "scales": torch.ones(4), "examples": 3, "sigma": 0.1},
        drawn=True,
    ),
    "skewed": Call(R.skewed_scales, {}, {"d": 3}),
    "regressions": Call(
        R.Regressions, {"x": sequences.x, "y": sequences.y, "w": sequences.w}
    ),
    "excess": Call(
        R.Regressions(sequences.x, sequences.y, sequences.w).excess,
        {"y_hat": sequences.y},
    ),
    "ridge": Call(
        R.ridge_predictions,
        {"x": sequences.x, "y": sequences.y},
        {"lambda_": 0.1},
        finite=("x", "y"),
    ),
    "selecting": Call(
        lambda x, y, tasks, **options: R.selecting_predictions(
            x, y, tasks=tasks, **options
        ),
        {"x": sequences.x, "y": sequences.y, "tasks": sequences.w},
        {"sigma": 0.1},
        free=("tasks",),
        finite=("x", "y", "tasks"),
    ),
    "transformer": Call(
        lambda x, y: R.transformer_predictions(reads_pairs, x, y),
        {"x": sequences.x, "y": sequences.y},
    ),
    "beginning": Call(
        lambda words: libraries.beginning("a b c", words=words), {}, {"words": 2}
    ),
}

SHAPES = {
    "a row too few": lambda x: x[:-1],
    "one row": lambda x: x[:1],  # it would broadcast
    "a column": lambda x: x[..., None],
    "no axis": lambda x: x.flatten()[0],
    "a list": lambda x: x.tolist(),
}


def arguments(wanted):
    """The tensors of all calls for which `wanted` is true."""
    return [
        (name, argument)
        for name, call in CALLS.items()
        for argument, x in call.tensors.items()
        if wanted(call, argument, x)
    ]


def numbers(x):
    """All numbers in a result."""
    if isinstance(x, torch.Tensor):
        return x.tolist()
    if isinstance(x, list | tuple):
        return [*map(numbers, x)]
    return numbers([*vars(x).values()]) if hasattr(x, "__dict__") else x


@pytest.mark.parametrize("change", SHAPES)
@pytest.mark.parametrize(
    ("name", "argument"), arguments(lambda call, argument, x: argument != "examples")
)
def test_a_wrong_shape_is_refused(name, argument, change):
    call = CALLS[name]
    if "row" in change and argument in call.free:
        return
    wrong = SHAPES[change](call.tensors[argument])
    named = refused(lambda: call(**{argument: wrong})).split()[0]
    assert named in (*call.tensors, *call.options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32])
@pytest.mark.parametrize(
    ("name", "argument"), arguments(lambda call, argument, x: x.dtype == torch.int64)
)
def test_integers_of_any_type_are_labels_and_ids(name, argument, dtype):
    """As an index torch takes uint8 for a mask."""
    call = CALLS[name]
    found = call(**{argument: call.tensors[argument].to(dtype)})
    assert repr(numbers(found)) == repr(numbers(call()))  # as NaN is not NaN


@pytest.mark.parametrize(
    ("name", "argument"), arguments(lambda call, argument, x: not x.is_floating_point())
)
def test_labels_ids_and_masks_are_not_of_another_type(name, argument):
    call = CALLS[name]
    x = call.tensors[argument]
    for dtype in (torch.float32, *([torch.int64] if x.dtype == torch.bool else [])):
        message = refused(lambda dtype=dtype: call(**{argument: x.to(dtype)}))
        assert message.split()[0] == argument
        assert str(dtype) in message


@pytest.mark.parametrize(
    ("name", "argument"), arguments(lambda call, argument, x: argument in call.ends)
)
def test_a_label_or_an_id_that_is_none_is_refused(name, argument):
    call = CALLS[name]
    for wrong in (-1, -100, call.ends[argument]):  # cross_entropy leaves out -100
        x = call.tensors[argument].clone()
        x.view(-1)[-1] = wrong
        message = refused(lambda x=x: call(**{argument: x}))
        assert message.split()[0] == argument
        assert str(wrong) in message


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    ("name", "argument"), arguments(lambda call, argument, x: argument in call.finite)
)
def test_what_is_not_finite_is_refused(name, argument, value):
    call = CALLS[name]
    if name == "accuracy" and value == value:
        return  # an infinite logit is certainty
    x = call.tensors[argument].clone()
    x.view(-1)[1] = value
    assert refused(lambda: call(**{argument: x})).split()[0] == argument


@pytest.mark.parametrize(
    ("name", "option", "wrong"),
    [
        ("reliability", "bins", -1),
        ("strided", "stride", 0),
        ("strided", "stride", 5),
        ("strided", "context", 0),
        ("knn", "classes", 0),
        ("knn", "neighbours", -1),
        ("knn", "tau", torch.nan),
        ("objective", "lambda_", -1.0),
        ("objective", "lambda_", torch.nan),
        ("path", "tolerance", torch.nan),
        ("path", "tolerance", 1e300),
        ("least squares", "ridge", torch.nan),
        ("nt_xent", "tau", 0.0),
        ("nt_xent", "tau", torch.nan),
        ("supcon", "tau", torch.nan),
        ("head", "k", 0),
        ("few", "per_class", -1),
        ("bits", "nats", torch.nan),
        ("bits", "nats", -1.0),
        ("bits", "tokens", 0),
        ("n-gram", "vocabulary", 0),
        ("n-gram", "order", -1),
        ("draw documents", "count", -1),
        ("draw documents", "symbols", torch.ones(0, 2).long()),
        ("draw documents", "operands", torch.ones(4).long()),
        ("candidates", "i", -1),
        ("candidates", "i", 999),
        ("draw regressions", "count", 0),
        ("draw regressions", "sigma", torch.nan),
        ("draw regressions", "sigma", torch.inf),
        ("draw regressions", "scales", torch.ones(0)),
        ("draw regressions", "scales", torch.tensor([1.0, torch.nan])),
        ("draw regressions", "scales", torch.ones(4, 1)),
        ("skewed", "d", 0),
        ("draw regressions", "tasks", torch.ones(0, 4)),
        ("draw regressions", "tasks", torch.ones(3, 5)),
        ("draw regressions", "tasks", torch.full((3, 4), torch.nan)),
        ("selecting", "tasks", torch.ones(0, m)),
        ("selecting", "sigma", 0.0),
        ("selecting", "sigma", torch.inf),
        ("ridge", "lambda_", torch.nan),
        ("ridge", "lambda_", torch.inf),
        ("beginning", "words", 0),
    ],
)
def test_a_number_out_of_range_is_refused(name, option, wrong):
    message = refused(lambda: CALLS[name](**{option: wrong}))
    assert message.split()[0] == option


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        # What is not a probability
        (E.brier_score, (torch.tensor([[1.5, -0.5]]), y[:1]), "p .*-0.5"),
        (E.reliability, (torch.tensor([0.5, 1.5]), y[:2] > 0), "confidence .*1.5"),
        # A mean of NaN or infinity
        (E.mean_interval, ([1.0, torch.nan],), "values .*1"),
        (E.mean_interval, ([torch.inf, 1.0],), "values .*1"),
        # Maps of other examples, and what has no plane
        (E.planar_maps, ([phi[0], phi[1][:-1]],), r"series .*\(12, m\).*\(11, 4\)"),
        (E.planar_maps, ([phi[0][:1]],), r"series .*2.*\(1, 4\)"),
        (E.planar_maps, ([phi[0][:, :1]],), r"series .*2.*\(12, 1\)"),
        (E.planar_maps, ([phi[0] / 0],), "series .*48"),
        # Squares that vanish or overflow
        (E.uniformity, (phi[0].double() * 1e-170,), "phi .*e-170"),
        (E.alignment, (phi[0], phi[1].double() * 1e170), "phi_tilde .*e.170"),
        # Windows without a token to predict
        (E.token_nats, (Bigrams(), []), "windows .*1.*0"),
        (E.token_nats, (Bigrams(), [ids[:, :1]]), "windows .*2.*1"),
        (E.token_nats, (Bigrams(), [torch.tensor([[1, -100]])]), "windows .*6.*-100"),
        # Texts whose padding is not at their end
        (T.last_token, (texts["c"], real.flip(1)), "real .*token .*2"),
        (T.mean_of_tokens, (texts["c"], real & ~real), "real .*token .*3"),
        # No symbol, no token
        (D.answer_scores, (after_tokens[:, :9], tokens[:, :9]), "x .*5.*9"),
        (N.NGram(V, ()).log_p, (torch.tensor(3),), "tokens "),
        (N.discounts, (torch.ones(3),), "counts .*float32"),
    ],
)
def test_one_sentence(function, arguments, message):
    options = {E.reliability: {"bins": 1}, E.mean_interval: {"generator": seeded()}}
    options = options.get(function, {})
    assert re.match(message, refused(lambda: function(*arguments, **options)))


@pytest.mark.parametrize("name", ["path", "probe", "least squares"])
@pytest.mark.parametrize("size", [1e-170, 1e160])
def test_features_whose_squares_are_no_numbers_are_refused(name, size):
    """Scaled to 1e-170, they ended at chance; to 1e160, in an error of LAPACK."""
    x = size * phi[0].double()
    assert refused(lambda: CALLS[name](features=x)).startswith("features ")


def test_precisions_that_differ_are_refused_or_joined():
    message = refused(lambda: CALLS["objective"](weight=fitted.weight.double()))
    assert re.match("weight .*float32.*float64", message)
    half, double = phi[0].half(), phi[1].double()
    mixed = [L.simclr_loss(half, double), L.nt_xent_loss(half, double, tau=0.1)]
    exact = [
        L.simclr_loss(half.double(), double),
        L.nt_xent_loss(half.double(), double, tau=0.1),
    ]
    torch.testing.assert_close(mixed, exact)


def test_next_token_loss_leaves_out_no_token():
    with pytest.raises(IndexError, match="-100"):
        L.next_token_loss(logits, torch.full_like(ids, -100))


def test_knn_tells_float64_neighbours_apart():
    """1e-5 rad apart their cosines differ by 5e-11, which float32 rounds to 0."""
    angle = torch.tensor([1e-5, 0.0], dtype=torch.float64)
    bank = torch.stack([angle.cos(), angle.sin()], dim=1)
    options = {"classes": 2, "neighbours": 1, "tau": 0.1}
    votes = E.knn_votes(bank, torch.tensor([0, 1]), bank[1:], **options)
    assert votes.tolist() == [[0, 1]]
