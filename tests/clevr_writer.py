"""Writes small CLEVR data sets, from the formats' descriptions: the published folder, and TensorFlow Datasets'."""

import json
from io import BytesIO

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

LABELS = {
    "color": ["gray", "blue", "brown", "yellow", "red", "green", "purple", "cyan"],
    "material": ["rubber", "metal"],
    "shape": ["cube", "sphere", "cylinder"],
    "size": ["small", "large"],
}
PLACES = {"3d_coords": (3,), "pixel_coords": (3,), "rotation": ()}
SPLITS = {"train": "train", "validation": "val"}


def draw(seed, objects):
    """A scene, as it is described in the published JSON, and its image [320, 480, 3]."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (40, 60, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    image[rng.integers(320), rng.integers(480)] = 1, 2, 3
    described = [
        {name: str(rng.choice(labels)) for name, labels in LABELS.items()}
        | {
            "3d_coords": rng.uniform(-3, 3, 3).tolist(),
            "pixel_coords": [int(rng.integers(480)), int(rng.integers(320)), float(rng.uniform(8, 15))],
            "rotation": float(rng.uniform(0, 360)),
        }
        for _ in range(objects)
    ]
    return image, described


def png(image, level=1):
    """With an alpha channel, as published."""
    file = BytesIO()
    Image.fromarray(np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])).save(file, "PNG", compress_level=level)
    return file.getvalue()


def write_published(folder, splits):
    """`splits` has the scenes of "train" and "validation", as `draw` gives them."""
    (folder / "scenes").mkdir(parents=True)
    for split, scenes in splits.items():
        short = SPLITS[split]
        (folder / "images" / short).mkdir(parents=True)
        described = []
        for i, (image, objects) in enumerate(scenes):
            name = f"CLEVR_{short}_{i:06d}.png"
            (folder / "images" / short / name).write_bytes(png(image))
            described.append({
                "image_index": i,
                "image_filename": name,
                "split": short,
                "objects": objects,
                "relationships": {"left": [[] for _ in objects]},
                "directions": {"left": [-0.66, -0.75, 0.0]},
            })  # fmt: skip
        text = json.dumps({"info": {"version": "1.0"}, "scenes": described})
        (folder / "scenes" / f"CLEVR_{short}_scenes.json").write_text(text)


def write_tfds(
    data_dir, splits, *, order=lambda scenes: scenes, file_format="array_record", labels=LABELS, change=lambda r: r
):
    """The same as TensorFlow Datasets prepare it; `order` permutes the records, `change` alters each."""
    import tensorflow_datasets as tfds

    folder = data_dir / "clevr" / "3.1.0"
    folder.mkdir(parents=True)
    objects = {name: tfds.features.ClassLabel(names=names) for name, names in labels.items()}
    objects |= {name: tfds.features.Tensor(shape=shape, dtype=np.float32) for name, shape in PLACES.items()}
    features = tfds.features.FeaturesDict({
        "file_name": tfds.features.Text(),
        "image": tfds.features.Image(),
        "objects": tfds.features.Sequence(objects),
        "question_answer": tfds.features.Sequence({"question": tfds.features.Text(), "answer": tfds.features.Text()}),
    })  # fmt: skip
    features.save_config(folder)
    about = []
    for split, scenes in splits.items():
        file = folder / f"clevr-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        size = 0
        for i, (image, described) in order(list(enumerate(scenes))):
            codes = {name: [labels.index(o[name]) for o in described] for name, labels in LABELS.items()}
            places = {
                name: np.array([o[name] for o in described], np.float32).reshape(-1, *shape)
                for name, shape in PLACES.items()
            }
            record = change({
                "file_name": f"CLEVR_{SPLITS[split]}_{i:06d}.png",
                "image": png(image),
                "objects": codes | places,
                "question_answer": {"question": ["How many?"], "answer": [str(len(described))]},
            })  # fmt: skip
            encoded = features.serialize_example(record)
            writer.write(encoded)
            size += len(encoded)
        writer.close()
        template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
        about.append({
            "name": split, "shardLengths": [str(len(scenes))], "numBytes": str(size), "filepathTemplate": template
        })  # fmt: skip
    info = {"name": "clevr", "version": "3.1.0", "fileFormat": file_format, "splits": about}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder
