"""The paper's network in stock PyTorch operators."""

import torch
import torch.nn.functional as F
from torch import nn


class StockAlexNet(nn.Module):
    """Pictures of 224 pixels -> logits; 55, 27, 13, 13, 13 and 6 pixels inside."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Linear(256 * 6 * 6, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm_pool(self.conv1(x))
        x = self.norm_pool(self.conv2(x))
        x = F.relu(self.conv3(x))
        x = F.relu(self.conv4(x))
        x = F.max_pool2d(F.relu(self.conv5(x)), 3, 2).flatten(1)
        x = F.dropout(F.relu(self.fc6(x)), 0.5, self.training)
        x = F.dropout(F.relu(self.fc7(x)), 0.5, self.training)
        return self.fc8(x)

    @staticmethod
    def norm_pool(x: torch.Tensor) -> torch.Tensor:
        # PyTorch averages over the window, the paper sums: alpha = 5 * 1e-4.
        x = F.local_response_norm(F.relu(x), 5, alpha=5e-4, beta=0.75, k=2.0)
        return F.max_pool2d(x, 3, 2)


class BandedAlexNet(StockAlexNet):
    """The same with the norm as a sum of shifted slices, which `torch.compile` fuses well."""

    @staticmethod
    def norm_pool(x: torch.Tensor) -> torch.Tensor:
        x = F.relu(x)
        squares = F.pad(x * x, (0, 0, 0, 0, 2, 2))
        total = sum(squares[:, i : i + x.shape[1]] for i in range(5))
        return F.max_pool2d(x * (2.0 + 1e-4 * total) ** -0.75, 3, 2)
