"""ResNet-20 for pictures of 32 x 32 (He et al. 2016, arXiv:1512.03385, section 4.2), shortcuts without parameters."""

import torch
from torch import nn
from torch.nn import functional

STAGES = ((16, 1), (32, 2), (64, 2))  # channels, stride of the first block
BLOCKS = 3  # blocks a stage


class Block(nn.Module):
    """Two convolutions and a shortcut: strided and padded with zero channels where the size changes (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, self.added, self.added))
        return functional.relu(y + x)


class ResNet20(nn.Module):
    """Pictures [batch, 3, 32, 32] -> logits [batch, classes]; parameter names are those of the published weights."""

    def __init__(self, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for number, (channels, stride) in enumerate(STAGES, 1):
            blocks = [Block(inputs if i == 0 else channels, channels, stride if i == 0 else 1) for i in range(BLOCKS)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            inputs = channels
        self.linear = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.adaptive_avg_pool2d(x, 1)
        return self.linear(torch.flatten(x, 1))
