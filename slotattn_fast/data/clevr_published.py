"""What the published CLEVR data fix, for those who read them and for those who draw their like."""

# Labels in the order of their codes, which is that of TensorFlow Datasets.
COLORS = ("gray", "blue", "brown", "yellow", "red", "green", "purple", "cyan")
MATERIALS = ("rubber", "metal")
SHAPES = ("cube", "sphere", "cylinder")
SIZES = ("small", "large")
PROPERTIES = {"color": COLORS, "material": MATERIALS, "shape": SHAPES, "size": SIZES}

MIN_OBJECTS, MAX_OBJECTS = 3, 10

WIDTH, HEIGHT = 480, 320
"""Size in pixels of the images with properties; those with masks have 320x240."""

CROP_TOP, CROP_LEFT, CROP_SIZE = 29, 64, 192
"""The part of the 320x240 images that object discovery is trained on: rows 29..220, columns 64..255."""
