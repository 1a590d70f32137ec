"""A small photo of every kind of file that `data.decode` reads, for a program that has to read them alike."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin, features

from regraft.data.decode import Unreadable, decode

_HEIC = (  # red and blue, 48 x 32
    "0000SW^{RQXk}?*00000ZE0pPXk}?*ZE0a<0004fZDn*}000000000XXk=`10000000000aA{+700000000000000000000B57=I"
    "V*mgE07O6l0RRC200001p#T8@00000002_}001LtX>Mi!000000RR916=`l}WdZ;I000310BCk&F#rGn01j|zbZr0t000010002}"
    "X>f9I0002pX>en20001XXm(>m0RwOV0058x000009`FGC{rLC*01pFT0096PKmiN^|NjGU00093kN^M!000939=ZZRVE_RDDnbDP"
    "18@KU0|1Z!00RI30{|YNAb|yz>g1-mxCm%4AOHXZ10VnZ0{|gn00967L;=Bbz=;3=025<xY;ta6Y<K_x01W^JfB*mh6lrsCWdHyG"
    "00000KmY&$KmY&$C}V74Z~y=RFaQ7m0RR91AOHXW0ssI1@Bjb+0{{R2-~a#s0ssI25O8UDX#fBK00RgJ2mk;87-?{AVE_OC00000"
    "0RRC7fdT^sga7~lTWw@vbN~PVPbdMe3E<;|nwJ0dumAjRc@G*a#_yl;<K5!*|L_=)-zoY1DZAIgPOIge{SX6pJly(vF?B%-kT=Ev"
    "ay*a4tdoQSMevJ_eWRdr<yA4@"
)
_ODD_EXIF = (
    b"Exif\0\0",
    b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0",
    b"Exif\0\0II*\0\xff\xff\xff\xff",
    b"Exif\0\0no TIFF",
)
TURNED = 6, 8  # two values of EXIF's orientation that change width and height


def write_samples(folder: Path) -> list[Path]:
    """Draw the photos into a folder, and return the paths of those that can be read here."""
    paths = []
    for name, data in _samples():
        try:
            decode(data)
        except Unreadable:
            continue
        (folder / name).write_bytes(data)
        paths.append(folder / name)
    return paths


def _samples() -> Iterator[tuple[str, bytes]]:
    yield from _jpegs()
    yield from _pngs()
    yield from _tiffs()
    photo, clear = _photo(), _see_through()
    for turn in TURNED:
        yield f"turned{turn}.webp", _file(photo, "WEBP", lossless=True, exif=_turned(turn))
        yield f"turned{turn}.png", _file(photo, "PNG", exif=_turned(turn))
    yield "clear.webp", _file(clear, "WEBP", lossless=True)
    yield "plain.bmp", _file(photo, "BMP")
    yield "palette.gif", _file(photo.quantize(32), "GIF")
    yield "clear.gif", _file(photo.quantize(32), "GIF", transparency=3)
    yield "plain.ppm", _file(photo, "PPM")
    yield "plain.ico", _file(clear, "ICO", sizes=[(32, 24)])
    if features.check("jpg_2000"):
        yield "plain.jp2", _file(photo, "JPEG2000")
    if features.check("avif"):
        yield "turned.avif", _file(photo, "AVIF", exif=_turned(6))
    yield "plain.heic", base64.b85decode(_HEIC)


def _jpegs() -> Iterator[tuple[str, bytes]]:
    photo = _photo()
    for turn in range(1, 9):
        yield f"turned{turn}.jpg", _file(photo, "JPEG", exif=_turned(turn))
    for number, exif in enumerate(_ODD_EXIF):
        yield f"odd-exif{number}.jpg", _file(photo, "JPEG", exif=exif)
    yield "turned-xmp.jpg", _file(photo, "JPEG", xmp=b'<x tiff:Orientation="6"/>')
    yield "grey.jpg", _file(photo.convert("L"), "JPEG")
    yield "cmyk.jpg", _file(photo.convert("CMYK"), "JPEG")
    yield "large.jpg", _file(photo.resize((1800, 1300)), "JPEG", exif=_turned(8))  # decoded at a reduced scale
    yield "tall.jpg", _file(photo.resize((12, 900)), "JPEG")


def _pngs() -> Iterator[tuple[str, bytes]]:
    photo, clear = _photo(), _see_through()
    yield "plain.png", _file(photo, "PNG")
    yield "clear.png", _file(clear, "PNG")
    yield "grey-clear.png", _file(clear.convert("LA"), "PNG")
    yield "palette.png", _file(photo.quantize(16), "PNG")
    yield "palette-clear.png", _file(photo.quantize(16), "PNG", transparency=2)
    yield "one-bit.png", _file(photo.convert("1"), "PNG")
    yield "deep.png", _file(_deep(), "PNG")
    damaged = PngImagePlugin.PngInfo()
    damaged.add_text("Raw profile type exif", "\nexif\n 12\nno number")  # Pillow fails where it is asked for
    yield "odd-exif.png", _file(photo, "PNG", pnginfo=damaged)


def _tiffs() -> Iterator[tuple[str, bytes]]:
    photo = _photo()
    for turn in TURNED:
        yield f"turned{turn}.tif", _file(photo, "TIFF", exif=_turned(turn))
        yield f"packed{turn}.tif", _file(photo, "TIFF", exif=_turned(turn), compression="tiff_lzw")
    yield "deep.tif", _file(_deep(), "TIFF")
    yield "float.tif", _file(Image.fromarray(np.linspace(-3, 9, 40 * 30, dtype=np.float32).reshape(30, 40)), "TIFF")


def _photo() -> Image.Image:
    """Draw a photo without any symmetry, `(40, 30)` pixels."""
    y, x = np.mgrid[0 : 1 : 30 * 1j, 0 : 1 : 40 * 1j]
    return Image.fromarray((np.stack([x, y, x * (1 - y)], axis=2) * 255).astype(np.uint8))


def _see_through() -> Image.Image:
    photo = _photo()
    photo.putalpha(photo.getchannel("G"))
    return photo


def _deep() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 40 * 30).reshape(30, 40).astype(np.uint16))


def _turned(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = turn
    return exif


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()
