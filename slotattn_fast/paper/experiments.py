"""The experiments of the paper and its appendices, as plain data: what is trained, measured, and was published.

In the order of the paper, under the names that `slotattn paper` takes. Settings are the paper's; how large models and
images are, and for how many steps they are trained, is the scale's (bases.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from slotattn_fast.paper.bases import ABLATED_DISCOVERY, ABLATED_PROPERTIES
from slotattn_fast.report import published
from slotattn_fast.report.published import Score
from slotattn_fast.train.setting import DEFAULT, Setting

Form = Literal["scores", "iterations", "objects", "pictures"]
"""scores: a row for each arm, FG-ARI or AP by distance; iterations: the same against the iterations at test time;
objects: AP against the number of objects; pictures: what the model of the first seed sees."""


@dataclass(frozen=True)
class Arm:
    """One training, of several seeds, and what is measured of it."""

    label: str
    """{iters} in it is T, where the scale gives it: the report puts it there, and each task's arms in its order."""
    base: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the run's or the model's configuration that are not the base's."""
    settings: tuple[Setting, ...] = (DEFAULT,)
    measure: Literal["score", "attention"] = "score"
    """score: FG-ARI or AP; attention: FG-ARI of the set predictor's attention."""
    published: tuple[Score, ...] = ()
    """In the order of the columns."""


@dataclass(frozen=True)
class Quoted:
    """A baseline that the paper quotes and does not train."""

    label: str
    published: tuple[Score, ...]


@dataclass(frozen=True)
class Point:
    """An arm under one of its settings."""

    arm: str
    setting: Setting = DEFAULT


@dataclass(frozen=True)
class Claim:
    """That one does better than another, by FG-ARI or by AP at a distance."""

    better: Point
    worse: Point
    distance: str = "inf"


@dataclass(frozen=True)
class Experiment:
    title: str
    source: str
    """Where in the paper."""
    finding: str
    """What the paper says of it, in our words."""
    arms: tuple[Arm, ...]
    form: Form = "scores"
    quoted: tuple[Quoted, ...] = ()
    claims: tuple[Claim, ...] = ()
    note: str = ""


ITERATIONS = tuple(Setting(iters=iters) for iters in range(1, 8))
CLEVR10_ITERATIONS = tuple(replace(setting, max_objects=10, num_slots=11) for setting in ITERATIONS)
"""Of CLEVR6's models, with a slot for each object and one for the background."""
_MLP = {"grouping": "slot-mlp"}
_QUICK_ITERATIONS = (
    "But at the scales quick and smoke the set predictor is trained with T = 10 and gradients through the last "
    "iteration: with 3 it learns too slowly there to show anything."
)
_ALL_ITERATIONS = {"implicit": False}
"""Without it the set predictors of the scale quick have gradients through the last iteration alone, so that initial
slots and what a loss before the last iteration asks for are not learned."""
_ALL_ITERATIONS_NOTE = "All arms have gradients through all iterations, at every scale."
_USUAL = "T = {iters} (usual)"
_HELD_OUT = "The paper measures its ablations on 320 training images and 500 validation images, we on held-out scenes."
_SLOT_ATTENTION = "Slot Attention"


def _ablation(
    title: str,
    source: str,
    finding: str,
    default: str,
    others: Mapping[str, Mapping[str, Any]],
    claims: tuple[tuple[str, ...], ...] = (),
    note: str = "",
    common: Mapping[str, Any] = MappingProxyType({}),
) -> Experiment:
    """The default and `others` (changes by label) in both tasks, all of them with `common`.

    claims: task's initial, better and worse label, and where it is not inf the distance.
    """
    bases = {"object discovery": ABLATED_DISCOVERY, "property prediction": ABLATED_PROPERTIES}
    arms = tuple(
        Arm(f"{task}: {label}", base, changes)
        for task, base in bases.items()
        for label, changes in {default: common, **{label: {**others[label], **common} for label in others}}.items()
    )
    tasks = {task[0]: task for task in bases}
    return Experiment(
        title,
        source,
        finding,
        arms,
        claims=tuple(
            Claim(Point(f"{tasks[initial]}: {better}"), Point(f"{tasks[initial]}: {worse}"), *distance)
            for initial, better, worse, *distance in claims
        ),
        note=" ".join(filter(None, (_HELD_OUT, note))),
    )


def _in_both(better: str, worse: str) -> tuple[tuple[str, str, str], ...]:
    return ("o", better, worse), ("p", better, worse)


EXPERIMENTS: dict[str, Experiment] = {
    "table-2": Experiment(
        "Object discovery on three data sets",
        "Table 2, section 4.1",
        "Slot Attention finds objects as well as IODINE and MONet, or better, and far better than an MLP in its place.",
        tuple(
            Arm(f"{data}: {model}", base, changes, published=(published.FG_ARI[data][model],))
            for data, base in (
                ("CLEVR6", "clevr6"),
                ("Multi-dSprites", "multi-dsprites"),
                ("Tetrominoes", "tetrominoes"),
            )
            for model, changes in ((_SLOT_ATTENTION, {}), ("Slot MLP", _MLP))
        ),
        quoted=tuple(
            Quoted(f"{data}: {model}", (score,))
            for data, scores in published.FG_ARI.items()
            for model, score in scores.items()
            if model in ("IODINE", "MONet")
        ),
        claims=tuple(
            Claim(Point(f"{data}: {_SLOT_ATTENTION}"), Point(f"{data}: Slot MLP"))
            for data in ("CLEVR6", "Multi-dSprites", "Tetrominoes")
        ),
        note="The paper left one Tetrominoes seed of five out, which cut scenes into stripes. An independent run of "
        "five seeds on CLEVR6 (EfficientMORL, 2021) had 93.3 +- 11.1, with one seed failed.",
    ),
    "figure-2": Experiment(
        "More iterations when testing, object discovery",
        "Figure 2, section 4.1",
        "Trained with 3 iterations, Slot Attention finds objects better with more, most of all in scenes with more "
        "objects than it was trained on.",
        (
            Arm("Tetrominoes", "tetrominoes", settings=ITERATIONS),
            Arm("Multi-dSprites", "multi-dsprites", settings=ITERATIONS),
            Arm("CLEVR6", "clevr6", settings=ITERATIONS),
            Arm("CLEVR10, K = 11", "clevr6", settings=CLEVR10_ITERATIONS),
        ),
        form="iterations",
        claims=(
            *(
                Claim(Point(data, Setting(iters=5)), Point(data, Setting(iters=3)))
                for data in ("Tetrominoes", "Multi-dSprites", "CLEVR6")
            ),
            Claim(Point("CLEVR10, K = 11", CLEVR10_ITERATIONS[4]), Point("CLEVR10, K = 11", CLEVR10_ITERATIONS[2])),
        ),
    ),
    "figure-3": Experiment(
        "What slots hold, and what each iteration attends to",
        "Figure 3, section 4.1",
        "Slots that no object needs stay empty; a uniform background is spread over all slots; the second iteration "
        "already tells objects apart.",
        (
            Arm("CLEVR6", "clevr6"),
            Arm("Multi-dSprites", "multi-dsprites"),
            Arm("Tetrominoes", "tetrominoes"),
        ),
        form="pictures",
    ),
    "binarized": Experiment(
        "Object discovery by shape: binarized Multi-dSprites",
        "Section 4.1",
        "White sprites on black, with 4 slots, are told apart as well as by IODINE and R-NEM.",
        (Arm(_SLOT_ATTENTION, "multi-dsprites-binarized", published=(published.BINARIZED[_SLOT_ATTENTION],)),),
        quoted=tuple(
            Quoted(model, (score,)) for model, score in published.BINARIZED.items() if model != _SLOT_ATTENTION
        ),
    ),
    "figure-4": Experiment(
        "Object discovery without colour: greyscale CLEVR6",
        "Figure 4, section 4.1",
        "Objects are found without their colours.",
        (Arm("CLEVR6, greyscale", "clevr6-greyscale"),),
        form="pictures",
    ),
    "figure-5-left": Experiment(
        "Property prediction on CLEVR10, by distance",
        "Figure 5 (left), section 4.2; Table 2 of Appendix C.2",
        "Slot Attention predicts sets as well as DSPN or better; an MLP in its place hardly does.",
        tuple(
            Arm(model, "clevr10-properties", changes, published=published.AP[model])
            for model, changes in ((_SLOT_ATTENTION, {}), ("Slot MLP", _MLP))
        ),
        quoted=(Quoted("DSPN, T = 30", published.AP["DSPN, T = 30"]),),
        claims=(Claim(Point(_SLOT_ATTENTION), Point("Slot MLP")),),
        note="The published AP is unverified: quoted from memory.",
    ),
    "figure-5-center": Experiment(
        "More iterations when testing, property prediction",
        "Figure 5 (center), section 4.2",
        "More iterations when testing mostly help.",
        (Arm("CLEVR10", "clevr10-properties", settings=ITERATIONS),),
        form="iterations",
        claims=(Claim(Point("CLEVR10", Setting(iters=5)), Point("CLEVR10", Setting(iters=3))),),
        note=f"Trained with T = 3. {_QUICK_ITERATIONS}",
    ),
    "figure-5-right": Experiment(
        "More objects and slots when testing, property prediction",
        "Figure 5 (right), section 4.2",
        "Trained on at most 6 objects with 6 slots, AP falls gracefully on more objects, with a slot for each.",
        (Arm("CLEVR6, tested on CLEVR10", "clevr6-properties", settings=(Setting(max_objects=10, num_slots=10),)),),
        form="objects",
    ),
    "figure-6": Experiment(
        "Predicted properties, and what slots attend to",
        "Figure 6, section 4.2; Table 1 of Appendix C.2",
        "Attention segments scenes though only properties are learned; more iterations sharpen it.",
        (Arm("CLEVR10", "clevr10-properties", settings=(DEFAULT, Setting(iters=5))),),
        form="pictures",
        note=f"Trained with T = 3. {_QUICK_ITERATIONS}",
    ),
    "attention-ari": Experiment(
        "Attention of the set predictor as a segmentation",
        "Section 4.2",
        "Without having seen a mask, attention maps segment CLEVR10.",
        (
            Arm(
                _SLOT_ATTENTION,
                "clevr10-properties",
                settings=(Setting(data="clevr-with-masks"),),
                measure="attention",
                published=(published.ATTENTION_ARI,),
            ),
        ),
        note="On CLEVR with masks, at the resolution of the encoder's map, which is 32x32 at the paper's scale. That "
        "data set is cropped to its centre, as for object discovery, and the model was trained on whole images, in "
        "which objects are smaller; whether the paper measured it on a crop, it does not say.",
    ),
    "figure-7": _ablation(
        "Value aggregation",
        "Figure 7, Appendix B",
        "The weighted mean trains more stably and scores much higher than the weighted sum, at small distances above "
        "all; a sum with LayerNorm is much like the mean.",
        "weighted mean",
        {
            "weighted sum": {"aggregation": "sum"},
            "weighted sum, LayerNorm": {"aggregation": "sum_norm"},
        },
        (*_in_both("weighted mean", "weighted sum"), ("p", "weighted mean", "weighted sum", "0.5")),
    ),
    "figure-8": _ablation(
        "Position embedding",
        "Figure 8, Appendix B",
        "Without it objects are found much worse; of properties only the position suffers.",
        "with",
        {"without": {"position_embedding": False}},
        (("o", "with", "without"), ("p", "with", "without", "0.5")),
    ),
    "figure-9": _ablation(
        "Slot initialization",
        "Figure 9, Appendix B",
        "A Gaussian for each slot is slightly better in property prediction and worse in object discovery.",
        "one Gaussian",
        {"a Gaussian for each slot": {"slot_init": "per_slot"}},
        (
            ("o", "one Gaussian", "a Gaussian for each slot"),
            ("p", "a Gaussian for each slot", "one Gaussian"),
        ),
        note=_ALL_ITERATIONS_NOTE,
        common=_ALL_ITERATIONS,
    ),
    "figure-10": _ablation(
        "Attention normalization axis",
        "Figure 10, Appendix B",
        "A softmax over the inputs, so without competition between slots, does much worse in both tasks.",
        "softmax over slots",
        {"softmax over inputs": {"softmax_over": "inputs", "aggregation": "sum"}},
        _in_both("softmax over slots", "softmax over inputs"),
    ),
    "figure-11": _ablation(
        "Recurrent update",
        "Figure 11, Appendix B",
        "The GRU does noticeably better than taking the update itself for the new slot.",
        "GRU",
        {"no GRU": {"use_gru": False}},
        _in_both("GRU", "no GRU"),
    ),
    "figure-12": _ablation(
        "Iterations when training",
        "Figure 12, Appendix B",
        "One iteration is clearly worse than more; more than 3 learn more slowly, so end lower after as many steps.",
        _USUAL,
        {f"T = {iters}": {"iters": iters} for iters in (1, 2, 4, 5)},
        (*_in_both(_USUAL, "T = 1"), ("o", _USUAL, "T = 5")),
        f"The usual T is 3. {_QUICK_ITERATIONS}",
    ),
    "figure-13": _ablation(
        "Layer normalization",
        "Figure 13, Appendix B",
        "LayerNorm of inputs and slots does better in both tasks; of properties, the position above all.",
        "LayerNorm",
        {"no LayerNorm": {"use_norm": False}},
        (*_in_both("LayerNorm", "no LayerNorm"), ("p", "LayerNorm", "no LayerNorm", "0.5")),
    ),
    "figure-14": _ablation(
        "Residual MLP",
        "Figure 14, Appendix B",
        "It is optional: property prediction may learn more slowly with it, object discovery slightly better.",
        "MLP",
        {"no MLP": {"use_mlp": False}},
    ),
    "figure-15": _ablation(
        "Softmax temperature",
        "Figure 15, Appendix B",
        "The temperature sqrt(D) is clearly better than 1 in both tasks.",
        "sqrt(D)",
        {"1": {"scale": 1.0}},
        _in_both("sqrt(D)", "1"),
    ),
    "figure-16": _ablation(
        "Offset for numerical stability",
        "Figure 16, Appendix B",
        "Whether it is added to the attention or to the denominator of the mean makes no difference.",
        "attention",
        {"denominator": {"eps_in": "denominator"}},
    ),
    "figure-17": _ablation(
        "Learning rate decay",
        "Figure 17, Appendix B",
        "A clear benefit in both tasks.",
        "decay",
        {"no decay": {"decay": "none", "decay_steps": None}},
        _in_both("decay", "no decay"),
    ),
    "figure-18": _ablation(
        "Learning rate warm-up",
        "Figure 18, Appendix B",
        "Most useful in object discovery, where it helps against solutions such as stripes.",
        "warm-up",
        {"no warm-up": {"warmup_steps": 0}},
        (("o", "warm-up", "no warm-up"),),
    ),
    "figure-19": Experiment(
        "More slots than needed when training",
        "Figure 19, Appendix B",
        "The number of objects need not be known: more slots may help property prediction and slightly harm object "
        "discovery.",
        (
            Arm("object discovery, CLEVR6: K = 7", "clevr6"),
            Arm("object discovery, CLEVR6: K = 11", "clevr6", {"num_slots": 11}),
            Arm("property prediction, CLEVR6: K = 6", "clevr6-properties"),
            Arm("property prediction, CLEVR6: K = 10", "clevr6-properties", {"num_slots": 10}),
        ),
        note=_HELD_OUT,
    ),
    "soft-k-means": Experiment(
        "Soft k-means in place of Slot Attention",
        "Appendix B",
        "Without GRU, LayerNorm and projections, Slot Attention is a soft k-means, and finds objects less well.",
        (
            Arm(_SLOT_ATTENTION, ABLATED_DISCOVERY, published=(published.FG_ARI["CLEVR6"][_SLOT_ATTENTION],)),
            Arm(
                "soft k-means",
                ABLATED_DISCOVERY,
                {"use_gru": False, "use_mlp": False, "use_norm": False, "use_projections": False},
                published=(published.SOFT_K_MEANS,),
            ),
        ),
        claims=(Claim(Point(_SLOT_ATTENTION), Point("soft k-means")),),
        note=f"{_HELD_OUT} We read it as without the MLP too. Published on CLEVR6.",
    ),
    "figure-20": Experiment(
        "A slot for the background",
        "Figure 20, Appendix C.1",
        "Trained on CLEVR6 with 11 slots, one seed of five gave the background a slot of its own; tested on up to 10 "
        "objects.",
        (
            Arm(
                "CLEVR6, K = 11",
                "clevr6",
                {"num_slots": 11},
                settings=(DEFAULT, Setting(max_objects=10)),
            ),
        ),
        form="pictures",
    ),
    "objects": Experiment(
        "AP by the number of objects",
        "Appendix C.2",
        "Scenes with more objects are harder, and there 5 iterations in place of 3 help most.",
        (
            Arm("T = 3", "clevr10-properties", settings=(Setting(iters=3),)),
            Arm("T = 5 when testing", "clevr10-properties", settings=(Setting(iters=5),)),
        ),
        form="objects",
        note=f"Trained with T = 3. {_QUICK_ITERATIONS}",
    ),
    "figure-23": Experiment(
        "A loss at every iteration, and the scale of coordinates",
        "Figure 23, Appendix C.2",
        "The loss at every iteration improves AP at all distances; a larger scale of the coordinates at small "
        "distances, and it may harm other properties.",
        (
            Arm("loss at the end, scale 1", "clevr10-properties", _ALL_ITERATIONS),
            Arm("loss at every iteration", "clevr10-properties", {"stepwise": True, **_ALL_ITERATIONS}),
            *(
                Arm(
                    f"coordinates of scale {scale}",
                    "clevr10-properties",
                    {**_ALL_ITERATIONS, "coordinate_scale": float(scale)},
                )
                for scale in (2, 6)
            ),
        ),
        claims=(
            Claim(Point("loss at every iteration"), Point("loss at the end, scale 1")),
            Claim(Point("coordinates of scale 6"), Point("loss at the end, scale 1"), "0.25"),
        ),
        note=f"The paper's text does not say which scales it compared. {_ALL_ITERATIONS_NOTE}",
    ),
}
