# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# The source of both notebooks beside it, transfer_learning.ipynb and transfer_learning.zh.ipynb: one code, and under it
# the prose in English (lang="en") and Chinese (lang="zh"). A cell with shows="name" becomes that function of
# train_loop.py. `make docs` runs it and writes both.

# %% [markdown] lang="en"
# # Transfer learning for images, step by step
#
# Two classes of photos, a few dozen of each, and a network that tells them apart. This notebook takes the way of the
# well-known PyTorch tutorial: load the data, take a pretrained network, give it a new head, train it in three ways,
# compare. Each step is done with regraft, and below it stand the lines of plain PyTorch that do the same. Together
# these lines are [`train_loop.py`](train_loop.py), one short file that is made to be copied.
#
# It needs no GPU and no network, and takes about two minutes. A Chinese edition is beside it:
# [`transfer_learning.zh.ipynb`](transfer_learning.zh.ipynb).

# %% [markdown] lang="zh"
# # 图像分类的迁移学习：一步一步来
#
# 两类照片，每类几十张，训练出一个能区分它们的网络。这份笔记沿用那篇广为人知的 PyTorch 教程的思路：
# 读取数据，取一个预训练网络，换上新的分类层，用三种方式训练，最后比较结果。
# 每一步先用 regraft 完成，紧接着列出等价的原生 PyTorch 代码。这些代码合起来就是
# [`train_loop.py`](train_loop.py)，一个短小的文件，可以直接拷走修改。
#
# 不需要 GPU，也不需要联网，全程大约两分钟。英文版见
# [`transfer_learning.ipynb`](transfer_learning.ipynb)。

# %% [markdown] lang="en"
# ## 1. What transfer learning is, and why ImageNet
#
# A network that is trained from nothing has to find out everything from your photos: what an edge is, what fur looks
# like, what makes a shape. A few hundred photos are not enough for that.
#
# ImageNet is a collection of 1.3 million photos of a thousand kinds of things. A network that has learned to tell
# these apart has found edges and textures in its first layers, and parts of things in its later ones. Nearly all of
# this is of use for other photos too. Only its last layer, the *head*, knows about the thousand classes. So:
#
# 1. take the network with all that it knows, the *backbone*;
# 2. replace the head by one for your classes;
# 3. train, and decide how much of the backbone may change with it.
#
# How much may change is the question of this notebook. *Full*: all layers learn. *Frozen*: the head alone learns.
# *Scratch*: all layers learn, but from random weights, to see what the pretraining was worth.

# %% [markdown] lang="zh"
# ## 1. 什么是迁移学习，为什么是 ImageNet
#
# 从零开始训练的网络，一切都得从你的照片里自己摸索：什么是边缘，毛皮是什么样子，形状由什么构成。
# 几百张照片，远远不够。
#
# ImageNet 收集了一千类物体的约 130 万张照片。学会区分它们的网络，前几层掌握了边缘和纹理，
# 后几层掌握了物体的局部，这些知识对别的照片几乎都有用。只有最后一层，也就是**分类层**（head），
# 才与那一千个类别绑定。于是做法很自然：
#
# 1. 把网络连同它学到的东西整个拿来，这部分叫**骨干网络**（backbone）；
# 2. 换掉分类层，换成对应你自己类别的；
# 3. 训练，并决定骨干网络可以改动多少。
#
# 改动多少，正是这份笔记要比较的。**全部训练**（full）：所有层都学。**冻结**（frozen）：只学分类层。
# **从头训练**（scratch）：所有层都学，但从随机权重出发，用来看预训练到底值多少。

# %%
import json
import os
import shutil
from pathlib import Path

import torch
from PIL import Image

import regraft
import train_loop
from regraft.backbones.mobilenet import MobileNet

EPOCHS = 3  # few, so that it ends soon; more for photos of your own
_ = torch.manual_seed(0)

# %% [markdown] lang="en"
# ## 2. The photos
#
# The tutorial's photos are ants and bees. This notebook must run without them, so it takes those that come with
# regraft: the *orchard*, kiwis and watermelons on plates, boards and grass, with other things lying about. They are
# drawings, and easier than real photos; take the figures below as an example, not as a claim. To walk through it with
# the ants and bees, put them into a folder named `hymenoptera` and set `REGRAFT_DATA` to the folder around it.
#
# One folder for each class, in `train` and `val`, that is all. `regraft.scan` opens every file and says what it
# found; what cannot be read is listed with the reason, never skipped in silence.

# %% [markdown] lang="zh"
# ## 2. 照片
#
# 教程用的是蚂蚁和蜜蜂。这份笔记没有它们也要能跑，所以用 regraft 自带的照片：“果园”（orchard），
# 盘子里、砧板上、草地上的猕猴桃和西瓜，旁边还散落着别的东西。画出来的照片比真实照片容易，
# 下面的数字只当示例看，不要当成结论。想用蚂蚁和蜜蜂走一遍，就把它们放进名为 `hymenoptera` 的文件夹，
# 再把 `REGRAFT_DATA` 设为它的上一级文件夹。
#
# `train` 和 `val` 里每个类别一个文件夹，仅此而已。`regraft.scan` 会打开每个文件并报告结果；
# 读不了的文件连同原因一起列出，绝不悄悄跳过。

# %%
if "REGRAFT_DATA" in os.environ:
    folder = Path(os.environ["REGRAFT_DATA"]) / "hymenoptera"
else:
    folder = regraft.unpack_orchard(Path("orchard"), train_per_class=30, val_per_class=16)
photos = regraft.scan(folder)
photos

# %%
regraft.dataset_grid(photos)

# %% [markdown] lang="en"
# ## 3. Two transforms
#
# A photo does not go into the network as it is. There are two ways in:
#
# - **To learn from**: a random part of the photo, resized to 224 x 224 pixels, mirrored half of the time. The network
#   never sees quite the same photo twice, so it cannot learn it by heart. This is called augmentation.
# - **To be judged**: the shorter side resized to 256 pixels, then the middle 224 x 224 cut out. Always the same.
#
# Here is one photo, five times as it is learned from, and once as it is judged.

# %% [markdown] lang="zh"
# ## 3. 两种变换
#
# 照片不是原样送进网络的，入口有两个：
#
# - **用于学习**：随机取照片的一块，缩放到 224 x 224 像素，一半情况下左右翻转。
#   网络几乎不会两次看到完全相同的图，也就无法死记硬背。这叫数据增强。
# - **用于评判**：短边缩放到 256 像素，再裁出中间的 224 x 224。每次都一样。
#
# 下面是同一张照片：前五张是学习时的样子，最后一张是评判时的样子。

# %%
learned, judged = train_loop.views()
photo = Image.open(photos.root / photos.paths[31])
regraft.photo_grid([learned(photo) for _ in range(5)] + [judged(photo)], [*["to learn from"] * 5, "to be judged"])

# %% [markdown] shows="views"
# In plain PyTorch: `views`

# %% [markdown] lang="en"
# After that come numbers: 0 to 255 becomes 0 to 1, minus a mean, divided by a deviation. Which mean and deviation
# belongs to the weights: a network sees well only what looks like the photos that it was trained on. With regraft,
# nobody types them: they come with the backbone and travel with the finished model.

# %% [markdown] lang="zh"
# 接下来变成数字：0 到 255 换算成 0 到 1，减去均值，再除以标准差。用哪组均值和标准差，由权重决定：
# 输入要和当初训练时一样，网络才看得清。用 regraft 时不必手写这些数，它们跟着骨干网络来，也跟着训练好的模型走。

# %%
print(regraft.load_backbone().preprocessing)

# %% [markdown] lang="en"
# ## 4. Folders and loaders
#
# Photos go through the network in batches. In PyTorch, a *dataset* finds the photos and their labels, and a *loader*
# puts them into batches, in a new order each time where they are learned from.
#
# There is a trap in this step. `ImageFolder` numbers the classes of each folder by itself: if `val` lacks the first
# class, all numbers shift by one, and the scores are wrong without a word. The lines below therefore check that both
# folders have the same classes; regraft matches classes by name.

# %% [markdown] lang="zh"
# ## 4. 文件夹与数据加载器
#
# 照片是一批一批送进网络的。在 PyTorch 里，dataset 负责找到照片和标签，loader 负责凑成批；
# 用于学习的那份，每轮都重新打乱顺序。
#
# 这一步有个坑。`ImageFolder` 给每个文件夹单独编号：如果 `val` 里缺了第一个类别，
# 编号就整体错一位，分数全错，却没有任何提示。所以下面的代码先检查两边的类别是否一致；regraft 则按名字对应类别。

# %%
splits = regraft.split(photos)
print("to learn from:", splits.train.counts)
print("to judge on:  ", splits.val.counts)

train, val = train_loop.load(folder)
images, labels = next(iter(train))
print("one batch:    ", tuple(images.shape), [train.dataset.classes[label] for label in labels[:4]], "...")

# %% [markdown] shows="load"
# In plain PyTorch: `load`

# %% [markdown] lang="en"
# ## 5. MobileNet and its checkpoint
#
# The tutorial's network is the first MobileNet, made for telephones. An ordinary convolution looks at a place and at
# all channels at once. MobileNet takes this apart: first each channel looks at its 3 x 3 neighbours for itself, then
# a 1 x 1 convolution mixes the channels. That is nearly the same for about an eighth of the work.

# %% [markdown] lang="zh"
# ## 5. MobileNet 和它的权重文件
#
# 教程用的网络是第一代 MobileNet，为手机设计。普通卷积同时看一个位置周围的所有通道；
# MobileNet 把它拆成两步：先让每个通道各看各的 3 x 3 邻域，再用 1 x 1 卷积把通道混合起来。
# 效果相近，计算量只有大约八分之一。

# %%
network = MobileNet()
print(f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters")
print(network.model[1])

# %% [markdown] lang="en"
# The tutorial comes with a file of ImageNet weights for it, `model_best.pth.tar`. That file is not ours to pass on,
# so we make one of the same kind. **The weights in ours are random**: it shows how such a file is read, no more. If
# you have the tutorial's file, put it beside this notebook, and it is taken instead.
#
# The file was saved while the network stood inside `nn.DataParallel`, so every name in it begins with `module.`, and
# the weights lie in a dictionary beside other things. `load_state_dict` refuses that. regraft unwraps what it finds,
# and says how much of the network it has filled.

# %% [markdown] lang="zh"
# 教程附带一个 ImageNet 权重文件 `model_best.pth.tar`。那个文件我们不便转发，这里造一个同样格式的。
# **里面的权重是随机的**：只用来演示怎么读这种文件。如果你手上有教程的文件，放到这份笔记旁边，就会改用它。
#
# 这种文件是在网络套着 `nn.DataParallel` 时保存的，所以每个名字前面都多了 `module.`，
# 权重还和别的东西一起装在字典里，直接 `load_state_dict` 会报错。regraft 会自动拆包，并告诉你填上了多少。

# %%
checkpoint = Path("model_best.pth.tar")
if not checkpoint.is_file():
    torch.save({"epoch": 0, "state_dict": torch.nn.DataParallel(network).state_dict()}, checkpoint)

backbone = regraft.load_backbone("mobilenet_v1", weights=checkpoint)
print(backbone.info["loaded"])

train_loop.read_checkpoint(network, checkpoint)

# %% [markdown] shows="read_checkpoint"
# In plain PyTorch: `read_checkpoint`

# %% [markdown] lang="en"
# ## 6. A pretrained network, and what its first layer sees
#
# From here on we use a network that does know ImageNet. regraft's default, EfficientNet-Lite0, is small, quick, and
# comes with regraft, so nothing is downloaded. Any classifier of torchvision or timm can take its place:
# `regraft.load_backbone("resnet50")`.

# %% [markdown] lang="zh"
# ## 6. 预训练网络，以及它的第一层看到什么
#
# 从这里开始，换用一个真正见过 ImageNet 的网络。regraft 默认用 EfficientNet-Lite0，小而快，随 regraft 一起安装，
# 不必另外下载。torchvision 和 timm 里的分类网络都可以替换它，例如 `regraft.load_backbone("resnet50")`。

# %%
pretrained = regraft.load_backbone()
print(f"{pretrained.name}: {pretrained.info['loaded']}, {pretrained.num_features} features a photo")
regraft.filter_grid(pretrained.first_layer, tile=54)

# %% [markdown] lang="en"
# Each square is one filter of the first layer, drawn as the 3 x 3 pixels of colour that it answers to most. Some have
# found edges that lie this way or that, some a colour against its opposite. Nobody told them to: this is what
# ImageNet taught. The filters of the MobileNet above, which has learned nothing, are noise:

# %% [markdown] lang="zh"
# 每个方块是第一层的一个卷积核，画成它反应最强的 3 x 3 彩色像素。有的找到了某个方向的边缘，
# 有的找到了一种颜色和它的补色。没有人教过它们，这是 ImageNet 教会的。
# 上面那个什么都没学过的 MobileNet，卷积核只是噪声：

# %%
regraft.filter_grid(backbone.first_layer, tile=54)

# %% [markdown] lang="en"
# ## 7. A new head
#
# The last layer turns features into a thousand numbers, one for each class of ImageNet. We need one for each of ours.
# regraft puts the new head on by itself when it trains. By hand it is one line, once the name of the layer is known;
# a layer put on the `DataParallel` wrapper instead of the network inside would be ignored without a word.

# %% [markdown] lang="zh"
# ## 7. 新的分类层
#
# 最后一层把特征变成一千个数，对应 ImageNet 的一千类。我们只要自己的那几类。regraft 训练时会自己换上新的分类层；
# 手工做也只有一行，前提是知道那一层叫什么。要当心：如果把新层装在 `DataParallel` 外壳上，而不是里面的网络上，
# 它会被悄悄忽略。

# %%
print("before:", network.fc)
train_loop.put_new_head(network, len(photos.classes))
print("after: ", network.fc)

# %% [markdown] shows="put_new_head"
# In plain PyTorch: `put_new_head`

# %% [markdown] lang="en"
# ## 8. Training all layers
#
# First way, *full*: head and backbone learn together. An epoch is one pass over all photos. A photo goes in, the loss
# says how far the answer is from the label, the gradient says which way each weight has to move, and the optimizer
# moves all of them a little. Then the photos of `val`, which nothing is learned from, are judged.
#
# The backbone is already good, so it must move gently. regraft decides the rates, the batch and the augmentation from
# your photos, and keeps all of it with the model; each is an option. `recipe="tutorial"` takes the tutorial's own
# numbers: plain SGD with a rate of 0.01 for everything.

# %% [markdown] lang="zh"
# ## 8. 训练所有层
#
# 第一种方式，**全部训练**（full）：分类层和骨干网络一起学。把所有照片过一遍叫一轮（epoch）。
# 照片送进去，损失衡量答案离标签多远，梯度指出每个权重该往哪边动，优化器让它们都动一小步。
# 每轮之后，再用 `val` 里没参与学习的照片评判一次。
#
# 骨干网络本来就不错，所以步子要小。学习率、批大小、数据增强，regraft 都根据你的照片来定，
# 并和模型存在一起；每一项也都可以自己指定。`recipe="tutorial"` 则照搬教程的设置：普通 SGD，学习率一律 0.01。

# %%
full = regraft.train(folder, "runs/full", mode="full", epochs=EPOCHS, quiet=True)
full

# %%
regraft.learning_curve(full, "loss")

# %% [markdown] lang="en"
# In plain PyTorch, the loop and the epoch are two functions. They run here too: one epoch with the MobileNet, whose
# weights are random, on photos of 96 pixels, so that it takes no time. It learns nothing in one epoch; that is no
# fault of the loop.

# %% [markdown] lang="zh"
# 用原生 PyTorch 写，训练循环和单轮各是一个函数。它们在这里也真的跑一遍：用权重随机的 MobileNet、
# 96 像素的小图训练一轮，几秒就完。一轮当然学不到什么，这不怪循环。

# %% [markdown] shows="learn run_epoch"
# In plain PyTorch: `learn` and `run_epoch`

# %%
train_loop.learn(network, *train_loop.load(folder, size=96), epochs=1)

# %% [markdown] lang="en"
# ## 9. Predicting photos
#
# What `regraft.train` gives back is the model as it lies on disk, read back and checked. It takes a path, the bytes
# of a file, a Pillow image or an array, and answers with a label and probabilities. Every figure comes with its 95 %
# interval: with so few photos to judge on, it is wide, and an accuracy without it would promise too much. After so
# few epochs, a model may well be right without being sure.

# %% [markdown] lang="zh"
# ## 9. 预测照片
#
# `regraft.train` 返回的，就是写到磁盘、又读回来核对过的模型。给它路径、文件内容、Pillow 图像或数组，
# 它回答标签和概率。每个指标都带 95 % 置信区间：评判用的照片这么少，区间自然很宽；
# 只报准确率而不报区间，就是说得太满。另外，训练轮数这么少，答对了但把握不大，也很正常。

# %%
evaluation = regraft.evaluate(full, folder)
evaluation

# %%
judged_photos, shown = evaluation.dataset, []
for i in (0, 1, 2, -3, -2, -1):
    path, label = judged_photos.root / judged_photos.paths[i], judged_photos.classes[judged_photos.labels[i]]
    shown.append((path, label, full.predict(path)))
regraft.prediction_grid(shown)

# %% [markdown] shows="predict"
# In plain PyTorch: `predict`

# %% [markdown] lang="en"
# ## 10. A frozen backbone
#
# Second way, *frozen*: the backbone stays as it is, the head alone learns. In PyTorch that is a loop over the
# parameters, before the new head is put on.
#
# Two things are worth knowing. A photo now always gives the same features, so there is no need to send it through the
# network in every epoch: regraft does it once and keeps the result. And with fixed features the best head is the
# solution of a convex problem; regraft solves it, so there is no learning rate to choose, there are no epochs, and
# the same photos give the same model to the last byte.
#
# The trap here: `requires_grad = False` does not stop BatchNorm, whose running statistics still move while the
# network is in training mode. A network that is frozen like this is not quite frozen.

# %% [markdown] lang="zh"
# ## 10. 冻结骨干网络
#
# 第二种方式，**冻结**（frozen）：骨干网络保持原样，只学分类层。在 PyTorch 里，就是换上新分类层之前，
# 对所有参数跑一个循环。
#
# 有两点值得知道。第一，同一张照片的特征从此不变，不必每轮都过一遍网络：regraft 只算一次，存起来反复用。
# 第二，特征固定之后，求最好的分类层是一个凸问题；regraft 直接解出来，不用选学习率，没有轮数，
# 同样的照片得到逐字节相同的模型。
#
# 这里也有个坑：`requires_grad = False` 管不住 BatchNorm。只要网络处于训练模式，它的统计量照样在变，
# 这样的“冻结”并不彻底。

# %%
frozen = regraft.train(folder, "runs/frozen", mode="frozen", quiet=True)
frozen

# %% [markdown] shows="freeze"
# In plain PyTorch: `freeze`

# %% [markdown] lang="en"
# ## 11. From scratch
#
# Third way, *scratch*: the same network and the same loop, but from random weights. In PyTorch it is `weights=None`
# where the network is built. A few epochs on a few dozen photos are very little for it. That is the point: the other
# two have had 1.3 million photos before.

# %% [markdown] lang="zh"
# ## 11. 从头训练
#
# 第三种方式，**从头训练**（scratch）：同样的网络，同样的循环，只是从随机权重出发。在 PyTorch 里，
# 就是建网络时写 `weights=None`。几十张照片、几轮训练，对它来说实在太少。要看的正是这一点：
# 另外两种方式，事先已经看过 130 万张照片。

# %%
scratch = regraft.train(folder, "runs/scratch", mode="scratch", epochs=EPOCHS, quiet=True)
scratch

# %% [markdown] lang="en"
# ## 12. Conclusion
#
# All three, judged on the same photos:

# %% [markdown] lang="zh"
# ## 12. 结论
#
# 三种方式，用同一批照片评判：

# %%
models = {"all layers": full, "frozen": frozen, "from scratch": scratch}
regraft.side_by_side(models, folder)

# %%
regraft.learning_curve(models)

# %% [markdown] lang="en"
# The sentences below the table are paired tests: they look at the photos that only one of two models has right, and
# say whether chance alone would do the same. On a handful of photos, *full* and *frozen* can seldom be told apart,
# and then the quicker one is the better choice. *Scratch* is far behind: pretraining is what makes so few photos
# enough.
#
# When does training all layers pay? When the photos are unlike those of ImageNet, such as blood cells under a
# microscope, or when there are many of them. regraft's [README](../README.md) has a table of all three ways on real
# sets of photos, measured with intervals and seeds. `regraft.compare(folder)` does what this notebook did in one
# line.

# %% [markdown] lang="zh"
# 表格下面的几句话来自配对检验：只看两个模型中恰有一个答对的那些照片，判断这样的差别会不会只是碰巧。
# 照片只有这么几张时，**全部训练**和**冻结**往往分不出高下，那就选快的那个。**从头训练**落后很多：
# 正是预训练，让这么少的照片也够用。
#
# 什么时候值得训练所有层？照片和 ImageNet 差得远的时候，比如显微镜下的血细胞；或者照片很多的时候。
# regraft 的 [README](../README.md) 里有一张表，是三种方式在几组真实照片上的实测结果，带置信区间和多个随机种子。
# 整份笔记做的比较，`regraft.compare(folder)` 一行就能完成。

# %% [markdown] lang="en"
# ## 13. What regraft adds
#
# ### Training that can stop at any time
#
# If you do not name a mode, regraft begins with the frozen head, which is usable after seconds, then looks for better
# features, then trains all layers, as long as the time allows and the gain is real. It says why it stopped. Ctrl-C
# keeps what is there, and the same command goes on.

# %% [markdown] lang="zh"
# ## 13. regraft 还多做了什么
#
# ### 随时可停的训练
#
# 不指定方式时，regraft 先解出冻结的分类层，几秒后就能用；再寻找更好的特征；
# 再训练所有层。只要时间允许、提升属实，就继续往下走，停下时会说明原因。按 Ctrl-C 会保留已有的结果，
# 再运行同一条命令就接着做。

# %%
best = regraft.train(folder, "runs/best", time_s=60, quiet=True)
print(json.loads(Path("runs/best/result.json").read_text())["decision"])

# %% [markdown] lang="en"
# ### A report
#
# One HTML file with the verdict, the photos behind every number, the worst mistakes and where the model looked, and
# how to repeat it all. It needs no network and can be sent as it is. Jupyter shows it here; where you see nothing,
# open `runs/best/report.html`.

# %% [markdown] lang="zh"
# ### 报告
#
# 一个 HTML 文件：结论、每个数字背后的照片、错得最离谱的例子以及模型看了哪里、怎样完整重做一遍。
# 不需要联网，可以直接发给别人。在 Jupyter 里会直接显示；如果这里什么都没有，请打开 `runs/best/report.html`。

# %%
regraft.report(best)

# %% [markdown] lang="en"
# ### A doctor for the photos
#
# Wrong labels, and photos that stand in `train` and in `val`, spoil a model and flatter its figures. To see it at
# work, we spoil a copy: one photo of `val` goes into `train` too, and one photo gets the other class.

# %% [markdown] lang="zh"
# ### 给照片看病
#
# 标签错了，或者同一张照片既在 `train` 又在 `val`，会弄坏模型，还会让分数虚高。
# 为了看效果，我们故意弄坏一份拷贝：把 `val` 的一张照片也放进 `train`，再把一张照片放错类别。

# %%
spoilt = shutil.copytree(folder, "spoilt", dirs_exist_ok=True)
first, second = photos.classes
leaked, mislabelled = (sorted(Path(spoilt, part, first).iterdir()) for part in ("val", "train"))
shutil.copy(leaked[0], Path(spoilt, "train", first, "copy.jpg"))
mislabelled[0].rename(Path(spoilt, "train", second, mislabelled[0].name))
print(regraft.find_issues(spoilt))

# %% [markdown] lang="en"
# ### Export that proves itself
#
# The file for another runtime is compared with the model on the photos that were kept for judging, from the file's
# bytes to the probabilities, before it is written. Beside it lies a short program that feeds it.

# %% [markdown] lang="zh"
# ### 会自证的导出
#
# 写出给其他运行环境用的文件之前，先在留作评判的照片上，从文件字节到概率，
# 与原模型逐张核对。旁边还附有一个调用它的短程序。

# %%
print(regraft.export(best, "model.onnx"))

# %% [markdown] lang="en"
# ### Your own photos
#
# Put each class into a folder of its own, and that is it:
#
# ```
# regraft scan photos
# regraft train photos --out runs/mine
# regraft predict runs/mine new.jpg
# regraft serve runs/mine
# ```

# %% [markdown] lang="zh"
# ### 换成你自己的照片
#
# 每个类别一个文件夹，就这样：
#
# ```
# regraft scan photos
# regraft train photos --out runs/mine
# regraft predict runs/mine new.jpg
# regraft serve runs/mine
# ```
