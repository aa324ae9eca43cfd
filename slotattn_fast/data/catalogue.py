"""The data sets of the paper, as plain data: what they are, where to get them, and how they are split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""Of a prepared folder."""

_DEEPMIND = "https://storage.googleapis.com/multi-object-datasets"


@dataclass(frozen=True)
class DataSet:
    """A published data set, as `slotattn data prepare` keeps it."""

    what: str
    image: tuple[int, int, int]
    """Height, width and channels of a prepared image."""
    train: int
    """Scenes in the training split: the first of the published ones."""
    eval: int
    """Scenes in the evaluation split: those right after them."""
    scenes: int
    """Published scenes, those without annotation left out."""
    source: str
    """What --source takes."""
    url: str
    licence: str
    masks: bool = True
    """Whether there are label maps."""
    generated: bool = True
    """Whether this project also draws a look-alike of it."""

    @property
    def megabytes(self) -> float:
        """Of the prepared images and label maps, in 10^6 bytes."""
        height, width, channels = self.image
        return (self.train + self.eval) * height * width * (channels + self.masks) / 1e6


def _multi_object(what: str, image: tuple[int, int, int], file: str, **others: Any) -> DataSet:
    """One of DeepMind's Multi-Object Datasets; the paper trains on the first 60 000 scenes and measures on 320."""
    values = {"train": 60_000, "eval": 320, "scenes": 1_000_000, **others}
    return DataSet(
        what,
        image,
        source=f"the file {file.rpartition('/')[2]}",
        url=f"{_DEEPMIND}/{file}",
        licence="Apache-2.0 (github.com/google-deepmind/multi_object_datasets)",
        **values,
    )


CATALOGUE = {
    "clevr": DataSet(
        "CLEVR (Johnson et al. 2017) with the properties of every object, 3 to 10 of them: property prediction. Whole "
        "images, 480x320, squeezed to 128x128. Training and validation splits as published. The look-alike squeezes a "
        "view of 320x240, which is as wide but shows more above and below: all is 8/9 as high as in the published.",
        (128, 128, 3),
        train=70_000,
        eval=15_000,
        scenes=85_000,
        source="the folder CLEVR_v1.0, or a tfds data_dir that holds clevr/3.1.0 in the array_record format",
        url="https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip (18 GB)",
        licence="CC BY 4.0 (cs.stanford.edu/people/jcjohns/clevr)",
        masks=False,
    ),
    "clevr-with-masks": _multi_object(
        "CLEVR rendered anew by DeepMind with a mask for every object: object discovery. Rows 29 to 220 and columns "
        "64 to 255 of the 320x240 images, resized to 128x128. CLEVR6 is --max-objects 6 of it; it is evaluated on the "
        "first 320 scenes of at most 6 objects after the training split, CLEVR10 on the first 320 of any.",
        (128, 128, 3),
        "clevr_with_masks/clevr_with_masks_train.tfrecords",
        train=70_000,
        scenes=100_000,
    ),
    "multi-dsprites-binarized": _multi_object(
        "2 or 3 white sprites (ovals, hearts, squares) on black, 64x64, one channel.",
        (64, 64, 1),
        "multi_dsprites/multi_dsprites_binarized.tfrecords",
    ),
    "multi-dsprites-colored-on-grayscale": _multi_object(
        "2 to 5 coloured sprites on grey, 64x64: the paper's Multi-dSprites.",
        (64, 64, 3),
        "multi_dsprites/multi_dsprites_colored_on_grayscale.tfrecords",
    ),
    "multi-dsprites-colored-on-colored": _multi_object(
        "1 to 4 coloured sprites on a coloured background, 64x64.",
        (64, 64, 3),
        "multi_dsprites/multi_dsprites_colored_on_colored.tfrecords",
    ),
    "tetrominoes": _multi_object(
        "3 coloured tetrominoes on black, 35x35.", (35, 35, 3), "tetrominoes/tetrominoes_train.tfrecords"
    ),
    "objects-room": _multi_object(
        "A room with up to 3 objects, 64x64. Sky, floor and both walls count as background. Not in the paper.",
        (64, 64, 3),
        "objects_room/objects_room_train.tfrecords",
        generated=False,
    ),
}
"""By the names that `slotattn data` takes. Sources: the publishers' pages; splits: the paper, section 4."""

GENERATED = tuple(name for name, data_set in CATALOGUE.items() if data_set.generated)
"""Those that `--data` draws by name, without a download."""


def require_one_meaning(data: str) -> None:
    """Raises ValueError for a name of GENERATED that is a prepared folder here too: neither is taken in silence."""
    if data in GENERATED and (Path(data) / MANIFEST).exists():
        raise ValueError(
            f"data: got {data!r}, a data set that is generated and also a prepared folder here; give ./{data} for the "
            "folder, or move it away"
        )


def prepared_folder(data: str) -> Path | None:
    """The folder that `data`, a name of GENERATED or a path, leads to; None for a name, and where there is none."""
    return Path(data) if data and data not in GENERATED and Path(data).is_dir() else None


def partial_folder(out: Path) -> Path:
    """Where what there is of a folder that is being made is kept, until it is whole."""
    return out.parent / f"{out.name}.partial"
