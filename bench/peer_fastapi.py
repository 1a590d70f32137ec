"""What one would write by hand: FastAPI around a bundle's ONNX file. python peer_fastapi.py BUNDLE PORT."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image

bundle, port = Path(sys.argv[1]), int(sys.argv[2])
manifest = json.loads((bundle / "regraft.json").read_text())
classes, p = manifest["classes"], manifest["preprocessing"]
session = onnxruntime.InferenceSession(bundle / "model.onnx")
app = FastAPI()


@app.get("/healthz")
def health() -> dict:
    return {"status": "ok"}


@app.post("/v1/predict")
async def predict(request: Request) -> dict:
    return await run_in_threadpool(answer, await request.body())


def answer(data: bytes) -> dict:
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    short = p["resize"][0]
    scale = short / min(photo.size)
    photo = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BICUBIC)
    left, top = (photo.width - p["width"]) // 2, (photo.height - p["height"]) // 2
    image = np.asarray(photo.crop((left, top, left + p["width"], top + p["height"])))[np.newaxis]
    (logits,) = session.run(["logits"], {"images": image})
    exp = np.exp(logits[0] - logits[0].max())
    return {
        "label": classes[int(exp.argmax())],
        "probabilities": dict(zip(classes, map(float, exp / exp.sum()), strict=True)),
    }


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")
