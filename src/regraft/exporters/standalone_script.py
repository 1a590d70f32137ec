"""The program that goes with an exported model: a photo's file to the model's input, in numpy and Pillow alone.

What it does is what `data.transforms` does with this model's numbers; every export is tested through it.
"""

from regraft.data.decode import DRAFT_FACTOR, FORMATS
from regraft.data.transforms import MAX_ASPECT, Preprocessing

RUNTIMES = {
    "onnx": (
        "onnxruntime",
        """session = onnxruntime.InferenceSession(str(Path(__file__).with_suffix(".onnx")))
    return session.run(["probabilities"], {"images": images})[0]""",
    ),
    "openvino": (
        "openvino",
        """exact = {"INFERENCE_PRECISION_HINT": "f32"}  # by itself it takes bfloat16 where a processor has it
    model = openvino.compile_model(str(Path(__file__).with_suffix(".xml")), "CPU", exact)
    return model({"images": images})["probabilities"]""",
    ),
    "torch": (
        "torch",
        """program = torch.export.load(str(Path(__file__).with_suffix(".pt2")))
    with torch.inference_mode():
        return program.module()(torch.from_numpy(images.copy())).numpy()""",
    ),
}
RESIZED = {
    "squash": "size = ({resize[1]}, {resize[0]})",
    "center": "size = ({short}, max(1, int({short} * height / width))) if width <= height else "
    "(int({short} * width / height), {short})",
    "sides": "ratio = {choose}(height / {resize[0]}, width / {resize[1]})\n"
    "    size = (max(1, round(width / ratio)), max(1, round(height / ratio)))",
}


def script(kind: str, preprocessing: Preprocessing, classes: tuple[str, ...]) -> str:
    """Write the program of an exported model.

    Args:
        kind: "onnx", "openvino" or "torch".
        preprocessing: What a photo goes through before the graph.
        classes: Names of the classes.
    """
    package, run = RUNTIMES[kind]
    p = preprocessing
    crop = "center" if p.crop_mode == "center" and p.resize[0] == p.resize[1] else "sides"
    resized = RESIZED["squash" if p.crop_mode == "squash" else crop].format(
        resize=p.resize, short=p.resize[0], choose="max" if p.crop_mode == "border" else "min"
    )
    values = {
        "PACKAGE": package,
        "RUN": run,
        "RESIZED": resized,
        "MIDDLE": MIDDLE.replace("ASPECT", str(MAX_ASPECT)) if p.crop_mode == "center" else "",
        "FILTER": f"Image.Resampling.{p.interpolation.upper()}",
        "FORMATS": ascii(FORMATS),
        "DRAFT": str(max(p.resize) * DRAFT_FACTOR),
        "WHITE": str(65535.0 if p.grey_bits is None else 2.0**p.grey_bits - 1),
        "WIDTH": str(p.width),
        "HEIGHT": str(p.height),
        "FILL": str(p.fill),
        "CLASSES": ascii(list(classes)),  # last: a name may look like one of these
    }
    text = TEMPLATE
    for name, value in values.items():
        text = text.replace(f"<{name}>", value)
    return text


MIDDLE = """    photo = crop(photo, min(photo.width, ASPECT * photo.height), min(photo.height, ASPECT * photo.width))
"""
TEMPLATE = '''"""A photo's file to probabilities. Needs numpy, Pillow and <PACKAGE>; for HEIC photos pi-heif too.

    python <this file> photo.jpg
"""

import sys
from pathlib import Path

import <PACKAGE>
import numpy as np
from PIL import Image, ImageOps

try:
    import pi_heif
except ImportError:
    pi_heif = None
else:
    pi_heif.register_heif_opener()

CLASSES = <CLASSES>
FORMATS = <FORMATS>


def to_input(path):
    """(H, W, 3) uint8 as the model takes it."""
    with Image.open(path, formats=formats(path)) as image:
        image.draft("RGB", (<DRAFT>, <DRAFT>))
        image.load()  # some files are turned by it, and no longer say that they were
        turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation(image))
        photo = to_rgb(image if turned is None else image.transpose(turned))
<MIDDLE>    width, height = photo.size
    <RESIZED>
    return np.asarray(crop(photo.resize(size, <FILTER>), <WIDTH>, <HEIGHT>))


def formats(path):
    with open(path, "rb") as file:
        head = file.read(64)
    if b"avif" in head or not head[4:].startswith((b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1")):
        return FORMATS
    if pi_heif is None:
        raise ValueError("a HEIC photo; to read these: pip install pi-heif")
    return ["HEIF"]


def orientation(image):
    try:
        return image.getexif().get(274)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return None


def to_rgb(image):
    if image.mode.startswith(("I", "F")):  # greys of 16 bits, or of any range
        grey = np.asarray(image).astype(np.float32)
        if not np.isfinite(grey).all():
            raise ValueError("grey values that are not finite")
        is_16_bit = image.mode.startswith("I") and grey.min() >= 0 and grey.max() <= 65535
        low, high = (0.0, <WHITE>) if is_16_bit else (float(grey.min()), float(grey.max()))
        grey = np.round((grey - low) * (255.0 / max(high - low, 1e-12)))
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def crop(photo, width, height):
    missing = max(0, width - photo.width), max(0, height - photo.height)
    if any(missing):
        left, top = missing[0] // 2, missing[1] // 2
        photo = ImageOps.expand(photo, (left, top, missing[0] - left, missing[1] - top), fill=<FILL>)
    left, top = round((photo.width - width) / 2), round((photo.height - height) / 2)
    return photo.crop((left, top, left + width, top + height))


def predict(images):
    """(N, H, W, 3) uint8 to probabilities (N, C)."""
    <RUN>


if __name__ == "__main__":
    failed = False
    for path in sys.argv[1:]:
        try:
            images = to_input(path)[np.newaxis]
        except Exception as error:
            print(f"{path} cannot be read: {error}", file=sys.stderr)
            failed = True
            continue
        probabilities = predict(images)[0]
        print(f"{path}  {CLASSES[probabilities.argmax()]}  {100 * probabilities.max():.1f} %")
    sys.exit(failed)
'''
