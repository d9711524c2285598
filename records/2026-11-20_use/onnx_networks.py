"""Every network at its full size against ONNX Runtime: largest difference of the logits.

    PYTHONPATH=src:tests python records/2026-11-20_use/onnx_networks.py > onnx.csv

Fresh weights of seed 0, 7 classes; 1 and 3 pictures of smooth noise, 0..255.
"""

import sys

import torch

from alexnet.augment import Preprocessing
from alexnet.export import Deployed, relative_difference, run_onnx, sample_pixels
from alexnet.networks import NETWORKS
from alexnet.onnx_graph import to_onnx
from alexnet.trained import TrainedAlexNet
from test_weights import card_of

CLASSES = tuple("abcdefg")

print("network,one_picture,three_pictures,largest_logit")
for name in sys.argv[1:] or NETWORKS:
    network = NETWORKS[name]
    model = TrainedAlexNet(network, len(CLASSES))
    model.reset_parameters(torch.Generator().manual_seed(0))
    px = network.input_px
    mean = 100 + 50 * torch.rand(px + 8, px + 8, 3, generator=torch.Generator().manual_seed(1))
    preprocessing = Preprocessing(mean, px, "crop", network.input_std)
    model.card = card_of(
        name, class_names=CLASSES, class_ids=CLASSES, preprocessing=preprocessing
    )
    model.eval().kernels = "plain"
    data = to_onnx(model).SerializeToString()
    deployed, found = Deployed(model), []
    for count in (1, 3):
        pixels = sample_pixels(model, count)
        with torch.no_grad():
            expected = deployed(pixels).numpy()
        found.append(relative_difference(run_onnx(data, pixels.numpy()), expected))
    print(f"{name},{found[0]:.1e},{found[1]:.1e},{abs(expected).max():.3g}", flush=True)
