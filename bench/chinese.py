"""The words of the tables in Chinese, for README.zh.md. What has no translation here stays as it is."""

import re

WORDS = {
    "whole process": "整个进程",
    "seconds (median)": "秒（中位数）",
    "seconds": "秒",
    "beside new photos": "与新照片之比",
    "peak memory": "内存峰值",
    "accuracy": "准确率",
    "train, nothing cached": "训练，没有任何缓存",
    "train, new photos": "训练，新照片",
    "train, same photos again": "训练，同样的照片再来一次",
    "predict one photo": "预测一张照片",
    "timm + scikit-learn by hand": "手写 timm + scikit-learn",
    "files read": "只读文件",
    "decoded, resized and cropped, nothing else": "只解码、缩放、裁剪",
    "through the engine, nothing else": "只过推理引擎",
    "features of new photos, from file to cache": "新照片的特征，从文件到缓存",
    "predicted, from file to probabilities": "预测，从文件到概率",
    "photos/s": "张/秒",
    "torch, channels last, bf16": "torch，channels last，bf16",
    "torch, channels last": "torch，channels last",
    "frozen searched": "冻结，搜索特征",
    "frozen": "冻结",
    "full": "全部微调",
    "scratch": "从零训练",
    "tutorial frozen": "教程：冻结",
    "tutorial full": "教程：全部微调",
    "tutorial scratch": "教程：从零训练",
    "usual features": "普通特征",
    "searched": "搜索后的特征",
    "new photos": "新照片",
    "again": "再来一次",
    "timm, train.py's settings": "timm，train.py 的设置",
    "fastai, `fine_tune` for 10 minutes": "fastai，`fine_tune`，10 分钟",
    "AutoGluon, `time_limit=600`": "AutoGluon，`time_limit=600`",
    "the tutorial, all layers, 10 epochs": "教程做法，训练全部层，10 轮",
    "the tutorial, frozen, 20 epochs": "教程做法，冻结主干，20 轮",
    "what learns": "学习的部分",
    "photos/s, beside all layers": "每秒照片数，与全部层之比",
    "all layers": "全部层",
    "last two stages": "最后两段",
    "last stage": "最后一段",
    "photos/s, 8 clients": "张/秒，8 个客户端",
    "one quiet client, p50": "单个客户端，p50",
    "regraft predict, a folder": "regraft predict，一个文件夹",
    "FastAPI and ONNX Runtime": "FastAPI 与 ONNX Runtime",
    "answered": "已回答",
    "refused": "已拒绝",
    "error 500": "错误 500",
    "no answer": "无回答",
    "slowest": "最慢",
    "memory": "内存",
}
SENTENCES = (
    (r"\\\* No choice of the recipe looked at this set\. ", r"\\* 选择训练方案时没有看过这个数据集。"),
    (
        r"All layers learn at ([\d.]+) photos/s on (.+?), judging after each epoch included, "
        r"([\d.]+) times as fast as the tutorial's plain loop \(([\d.]+)\)",
        r"全部层一起训练：每秒 \1 张（\2；含每轮之后的评估），是教程普通循环（\4）的 \3 倍",
    ),
    (
        r"Photos of (\d+x\d+); the server answers at (\d+) % of the speed of `regraft predict`\.",
        r"\1 的照片；服务器的速度是 `regraft predict` 的 \2 %。",
    ),
    (
        r" Over (\d+) requests its memory went from (\d+) to (\d+) MB\. ",
        r"\1 个请求期间，内存从 \2 MB 到 \3 MB。",
    ),
    (r"(\d+) hostile files, one by one", r"\1 个恶意文件，逐个发送"),
    (r", dead", "，已崩溃"),
    (r"photos of (\d+x\d+)", r"\1 的照片"),
    (r"scan ([\d,]+) photos again", r"再次检查 \1 张照片"),
    (r"scan ([\d,]+) new photos \(drawn, (\d+x\d+)\)", r"检查 \1 张新照片（绘制的，\2）"),
    (r"list ([\d,]+) paths", r"列出 \1 个路径"),
    (r"a head for ([\d,]+) photos", r"为 \1 张照片求解分类头"),
    (r"([\d,]+) photos of (\w+), ", r"\2 的 \1 张照片，"),
    (r"(\d+) photos, ", r"\1 张照片，"),
    (r"(\d+) cores?\b(, )?", lambda found: f"{found[1]} 核" + "，" * bool(found[2])),
    (r" with (AMX|bf16|AVX-512|AVX2|NEON)", r"（\1）"),
    (r"; `python", "；`python"),
    (r"`\.$", "`。"),
    (
        r"\. New features come at (\d+) % of what decoding and the engine allow one after the other, "
        r"predictions at (\d+) % of that speed\.",
        r"。新特征的速度是“先解码、再推理”所能达到的 \1 %，预测是它的 \2 %。",
    ),
    (
        r" One photo by a process of its own: ([\d.]+) s, of which ([\d.]+) s are regraft's imports, "
        r"([\d.]+) s Python's start",
        r"单独起一个进程预测一张：\1 秒，其中 regraft 的导入 \2 秒，Python 启动 \3 秒",
    ),
    (r"Accuracy and seconds, means over seeds, ", "准确率与秒数，各种子的平均，"),
    (r"^Seconds on ", "秒数："),
    (r"([\d.]+) to ([\d.]+)", r"\1–\2"),
    (r"(\d+) s\b", r"\1 秒"),
    (r"(\d+)x(?= \|)", r"\1 次"),
)


def in_chinese(text: str) -> str:
    """A table and the sentence below it."""
    cells = [[WORDS.get(cell.strip(), cell.strip()) for cell in line.split("|")] for line in text.splitlines()]
    whole = "\n".join(" | ".join(line).strip() for line in cells)
    for pattern, chinese in SENTENCES:
        whole = re.sub(pattern, chinese, whole, flags=re.MULTILINE)
    return whole
