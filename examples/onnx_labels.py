"""Label a photograph by what `deeplab export model.onnx` has written, without this package.

python onnx_labels.py model.onnx photo.jpg labels.png      # onnxruntime, numpy and pillow
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, photo, out = sys.argv[1:]
with open(f"{model}.json") as file:
    palette, how = map(json.load(file).get, ["palette", "preprocessing"])
rgb = np.asarray(ImageOps.exif_transpose(Image.open(photo)).convert("RGB"))
x = rgb[..., ["RGB".index(letter) for letter in how["channels"]]] * how["scale"]
x = ((x - how["mean"]) / how["deviation"]).astype(np.float32).transpose(2, 0, 1)[None]
logits = onnxruntime.InferenceSession(model).run(["logits"], {"x": x})[0][0]  # [classes, H, W]
labels = Image.fromarray(logits.argmax(0).astype(np.uint8))  # several labels a pixel: logits >= 0
labels.putpalette(np.array(palette, np.uint8).tobytes())
labels.save(out)
