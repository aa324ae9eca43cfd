"""A contact sheet of a data set: scenes, and below each its true objects."""

from pathlib import Path

import numpy as np
from PIL import Image

from slotattn_fast.atomic import atomic_write
from slotattn_fast.data.split import has_labels, open_split
from slotattn_fast.report.page import NEUTRAL, PALETTE

COLUMNS, ROWS = 8, 3
GAP = 4
TILE = 128
"""Pixels of the sheet; images are repeated a whole number of times up to about this size."""


def write_contact_sheet(data: str, path: Path, max_objects: int | None = None) -> None:
    """Writes a PNG with the first scenes to train on of a generated data set or a prepared folder.

    Below every row of images are the objects, each in a colour of its own, where the data has labels.
    """
    labelled = has_labels(data)
    names = ["images", "labels"] if labelled else ["images"]
    split = open_split(data, "train", names, max_objects=max_objects)
    number = split.at_most(COLUMNS * ROWS)
    columns = min(COLUMNS, number)
    scenes = split.read(np.arange(number))
    images = scenes["images"].numpy()
    tiles = np.broadcast_to(images, (*images.shape[:3], 3))
    rows = [tiles[i : i + columns] for i in range(0, number, columns)]
    if labelled:
        colours = np.concatenate([[[NEUTRAL] * 3], PALETTE])
        labels = scenes["labels"].numpy()
        truth = (colours[np.where(labels == 0, 0, (labels - 1) % len(PALETTE) + 1)] * 255).round().astype(np.uint8)
        rows = [row for i, above in enumerate(rows) for row in (above, truth[i * columns : (i + 1) * columns])]

    scale = max(1, round(TILE / images.shape[1]))
    height, width = (side * scale + GAP for side in images.shape[1:3])
    page = np.full((len(rows) * height + GAP, columns * width + GAP, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            top, left = GAP + r * height, GAP + c * width
            page[top : top + height - GAP, left : left + width - GAP] = tile.repeat(scale, 0).repeat(scale, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        Image.fromarray(page).save(file, "PNG")
