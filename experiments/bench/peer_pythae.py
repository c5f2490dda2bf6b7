"""pythae's VAE with M1's network, trained as its trainer does: its model's loss, Adam, no schedule."""

import torch
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import nn

from experiments.bench.epoch import Z_DIM


class Encoder(BaseEncoder):
    """784-500-500, then mean and log-variance of z."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(784, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(500, Z_DIM), nn.Linear(500, Z_DIM)

    def forward(self, x):
        """Return both for x (B, 784), each (B, Z)."""
        hidden = self.hidden(x)
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_variance(hidden))


class Decoder(BaseDecoder):
    """z-500-500-784, then the sigmoid: pythae's likelihood takes probabilities."""

    def __init__(self):
        super().__init__()
        layers = nn.Linear(Z_DIM, 500), nn.ReLU(), nn.Linear(500, 500), nn.ReLU(), nn.Linear(500, 784), nn.Sigmoid()
        self.layers = nn.Sequential(*layers)

    def forward(self, z):
        """Return the pixels' probabilities (B, 784) for z (B, Z)."""
        return ModelOutput(reconstruction=self.layers(z))


def build_model():
    """Return the untrained VAE."""
    return VAE(VAEConfig(input_dim=(784,), latent_dim=Z_DIM, reconstruction_loss="bce"), Encoder(), Decoder())


def build_update():
    """Return a function that makes one update on x (B, 784)."""
    model = build_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def update(x):
        loss = model({"data": x}).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return update
