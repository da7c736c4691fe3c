"""Class names and colours of the known sets, in the order of their indices."""

from __future__ import annotations

import numpy as np

from deeplab.data.outputs import voc_palette

COCO_TO_VOC = {
    "airplane": "aeroplane",
    "bicycle": "bicycle",
    "bird": "bird",
    "boat": "boat",
    "bottle": "bottle",
    "bus": "bus",
    "car": "car",
    "cat": "cat",
    "chair": "chair",
    "cow": "cow",
    "dining table": "diningtable",
    "dog": "dog",
    "horse": "horse",
    "motorcycle": "motorbike",
    "person": "person",
    "potted plant": "pottedplant",
    "sheep": "sheep",
    "couch": "sofa",
    "train": "train",
    "tv": "tvmonitor",
}
"""COCO's names of the twenty VOC classes; its other sixty categories are background."""

VOC = ("background", *COCO_TO_VOC.values())
VOC_PALETTE = voc_palette()[: len(VOC)]

CONTEXT_59_LABELS = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "table", "dog", "horse", "motorbike", "person", "pottedplant", "sheep"),
    *("sofa", "train", "tvmonitor", "bag", "bed", "bench", "book", "building", "cabinet"),
    *("ceiling", "cloth", "computer", "cup", "door", "fence", "floor", "flower", "food", "grass"),
    *("ground", "keyboard", "light", "mountain", "mouse", "curtain", "platform", "sign", "plate"),
    *("road", "rock", "shelves", "sidewalk", "sky", "snow", "bedclothes", "track", "tree"),
    *("truck", "wall", "water", "window", "wood"),
)
"""PASCAL-Context in the order of the authors' own archive (59_labels.txt)."""

CONTEXT = ("background", *sorted(CONTEXT_59_LABELS[1:]))
"""The same in alphabetical order, as its PNG label maps are mostly passed on."""

CONTEXT_PALETTE = voc_palette()[: len(CONTEXT)]

PERSON_PART = (
    *("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"),
)
PERSON_PART_PALETTE = voc_palette()[: len(PERSON_PART)]

_CITYSCAPES = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
CITYSCAPES = tuple(_CITYSCAPES)
CITYSCAPES_IDS = {entry[0]: index for index, entry in enumerate(_CITYSCAPES.values())}
"""Label id -> train id of the classes that count; ids 0-33 in all, and -1, stored as 255."""
CITYSCAPES_VOID_IDS = tuple(i for i in range(34) if i not in CITYSCAPES_IDS)
CITYSCAPES_PALETTE = np.array([entry[1] for entry in _CITYSCAPES.values()], np.uint8)

_CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CAMVID = tuple(_CAMVID)
CAMVID_VOID = 11
CAMVID_PALETTE = np.array(list(_CAMVID.values()), np.uint8)
