"""The paper's set predictor in plain PyTorch, to be read beside its section 2.3 and Appendix E.4.

Every layer is what the appendix says, every target is compared with every prediction, and the pairs of least cost are
found image by image. The oracle of the fast model, and what it is timed against. It imports nothing else of this
project but the plain Slot Attention and encoder. Shapes: B images of C channels and H = W pixels, K slots of width D,
19 features of an object: coordinates 3, size 2, material 2, shape 3, colour 8, and whether there is one.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import Encoder
from .slot_attention import SlotAttention

FEATURES = 19


class SetPredictor(nn.Module):
    """Encoder, Slot Attention and an MLP that reads every slot, with the parameter names of the fast model.

    The arguments are fields of `slotattn_fast.models.property_config.PropertyConfig`, which describes them; the
    defaults are the paper's for CLEVR10. Weights are Glorot-uniform and biases zero, as in the paper's code.
    """

    def __init__(
        self,
        image_size: int = 128,
        image_channels: int = 3,
        encoder_channels: int = 64,
        encoder_strides: Sequence[int] = (1, 2, 2, 1),
        num_slots: int = 10,
        slot_dim: int = 64,
        iters: int = 3,
        hidden_dim: int = 128,
        classifier_dim: int = 64,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(image_size, image_channels, encoder_channels, encoder_strides)
        self.classifier = nn.Sequential(
            nn.Linear(slot_dim, classifier_dim), nn.ReLU(), nn.Linear(classifier_dim, FEATURES), nn.Sigmoid()
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        self.slot_attention = SlotAttention.paper(
            num_slots, slot_dim, iters=iters, hidden_dim=hidden_dim, input_dim=encoder_channels
        )

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Predicts a set [B, K, 19], from 0 to 1, for each of the images [B, C, H, W].

        The slots are drawn with `noise` [B, K, D] of the standard normal distribution.
        """
        tokens = self.encoder(images)
        slots = self.slot_attention.initial_slots(tokens, noise.shape[1], noise=noise)
        return self.classifier(self.slot_attention(tokens, slots_init=slots))

    def loss(self, images: Tensor, targets: Tensor, noise: Tensor) -> Tensor:
        """`set_loss` of what is predicted for images [B, C, H, W] and of targets [B, K, 19], padded with rows of 0."""
        return set_loss(self(images, noise), targets)


def set_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """The Huber loss of the pairs that matching makes of predictions and targets [B, K, 19], in any order.

    The mean over the features, the sum over the pairs, padding among them, and the mean over the images. Matching needs
    SciPy, and raises ValueError for predictions that are not finite.
    """
    from scipy.optimize import linear_sum_assignment  # on demand: Slot Attention does without

    predictions = predictions.to(targets.dtype)  # autocast makes them bfloat16
    x, y = torch.broadcast_tensors(predictions[:, None], targets[:, :, None])
    cost = F.huber_loss(x, y, reduction="none").mean(dim=-1)  # [B, K targets, K predictions]
    columns = np.stack([linear_sum_assignment(image)[1] for image in cost.detach().cpu().numpy()])  # of rows 0 to K - 1
    return cost.gather(2, torch.from_numpy(columns).to(cost.device)[:, :, None]).sum(dim=(1, 2)).mean()
