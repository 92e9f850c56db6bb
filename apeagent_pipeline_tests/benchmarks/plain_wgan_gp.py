"""A transformer WGAN-GP as one writes it from the tutorial's description: what ``gan_speed.py`` compares with.

The generator encodes the condition rows and decodes a window from one noise vector, all rows at once. The critic has
about 28.9 million parameters: a transformer over condition and window, then a network over all rows laid side by side,
with spectral norm, dropout, minibatch discrimination and the gradient penalty through all of them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

HIDDEN, LAYERS, HEADS, NOISE, DROPOUT = 256, 4, 8, 128, 0.1
CRITIC_STEPS, RATE, PENALTY, MATCHING, DIVERSITY, INSTANCE_NOISE = 5, 1e-4, 10.0, 1.0, 0.1, 0.1
WIDE, KERNELS, KERNEL_WIDTH = 4096, 64, 2


def positions(rows: int) -> Tensor:
    """Sinusoids, [rows, HIDDEN]."""
    angles = torch.arange(rows)[:, None] * torch.exp(torch.arange(0, HIDDEN, 2) * (-math.log(10_000.0) / HIDDEN))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class PlainGenerator(nn.Module):
    """Condition [n, context, features] and noise [n, NOISE] -> window [n, length, features]."""

    def __init__(self, features: int, context: int, length: int) -> None:
        super().__init__()
        options = {"activation": "gelu", "batch_first": True, "dropout": DROPOUT}
        self.embedding = nn.Linear(features, HIDDEN)
        self.from_noise = nn.Linear(NOISE, HIDDEN)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(HIDDEN, HEADS, 4 * HIDDEN, **options), LAYERS)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(HIDDEN, HEADS, 4 * HIDDEN, **options), LAYERS)
        self.out = nn.Linear(HIDDEN, features)
        self.register_buffer("context_places", positions(context))
        self.register_buffer("places", positions(length))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, condition: Tensor, noise: Tensor) -> Tensor:
        memory = self.encoder(self.embedding(condition) + self.context_places)
        rows = self.from_noise(noise)[:, None] + self.places
        return self.out(self.decoder(rows, memory, tgt_mask=self.mask))


class PlainCritic(nn.Module):
    """Condition and window -> score [n], and the activations before it."""

    def __init__(self, features: int, rows: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            HIDDEN, HEADS, 4 * HIDDEN, activation="gelu", batch_first=True, dropout=DROPOUT
        )
        self.embedding = spectral_norm(nn.Linear(features, HIDDEN))
        self.encoder = nn.TransformerEncoder(layer, LAYERS)
        for each in self.encoder.layers:
            spectral_norm(each.linear1)
            spectral_norm(each.linear2)
        self.network = nn.Sequential(
            spectral_norm(nn.Linear(rows * HIDDEN, WIDE)),
            nn.LeakyReLU(0.2),
            nn.Dropout(DROPOUT),
        )
        self.kernels = nn.Linear(WIDE, KERNELS * KERNEL_WIDTH, bias=False)
        self.score = spectral_norm(nn.Linear(WIDE + KERNELS, 1))
        self.register_buffer("places", positions(rows))

    def forward(self, window: Tensor, compare: bool = True) -> tuple[Tensor, Tensor]:
        activations = self.network(self.encoder(self.embedding(window) + self.places).flatten(1))
        projected = self.kernels(activations).view(-1, KERNELS, KERNEL_WIDTH).transpose(0, 1)
        closeness = torch.zeros(len(window), KERNELS)
        if compare:
            closeness = torch.exp(-torch.cdist(projected, projected, p=1)).sum(dim=2).T
        return self.score(torch.cat([activations, closeness], dim=1)).squeeze(1), activations


class PlainTraining:
    """Generator, critic and their optimizers; `step` is `CRITIC_STEPS` steps of the critic and one of the generator."""

    def __init__(self, rows: Tensor, starts: Tensor, context: int, length: int, batch: int) -> None:
        self.rows, self.starts, self.context, self.batch = rows, starts, context, batch
        self.index = torch.arange(context + length)
        self.generator = PlainGenerator(rows.shape[1], context, length)
        self.critic = PlainCritic(rows.shape[1], length)
        self.optimizers = [
            torch.optim.Adam(each.parameters(), lr=RATE, betas=(0.0, 0.9)) for each in (self.generator, self.critic)
        ]

    def step(self) -> tuple[float, float]:
        """Losses of generator and critic."""
        for _ in range(CRITIC_STEPS):
            critic_loss = self.critic_step()
        return self.generator_step(), critic_loss

    @parametrize.cached()  # the normed weights are the same for all three passes
    def critic_step(self) -> float:
        condition, real = self.windows()
        with torch.no_grad():
            fake = self.generator(condition, torch.randn(self.batch, NOISE))
        real, fake = (each + INSTANCE_NOISE * torch.randn_like(each) for each in (real, fake))
        loss = self.critic(fake)[0].mean() - self.critic(real)[0].mean()
        loss = loss + PENALTY * self.penalty(real, fake)
        return self.descend(self.optimizers[1], loss)

    def penalty(self, real: Tensor, fake: Tensor) -> Tensor:
        mix = torch.rand(self.batch, 1, 1)
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            score = self.critic(between, compare=False)[0]
        (slope,) = torch.autograd.grad(score.sum(), between, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()

    def generator_step(self) -> float:
        condition, real = self.windows()
        noise = torch.randn(2, self.batch, NOISE)
        fake, other = self.generator(condition, noise[0]), self.generator(condition, noise[1])
        score, seen = self.critic(fake)
        wanted = self.critic(real)[1].mean(dim=0).detach()
        matching = (seen.mean(dim=0) - wanted).square().mean()
        loss = -score.mean() + MATCHING * matching - DIVERSITY * (fake - other).abs().mean()
        return self.descend(self.optimizers[0], loss)

    def windows(self) -> tuple[Tensor, Tensor]:
        """Standardised condition and window rows of a batch."""
        chosen = self.starts[torch.randint(len(self.starts), (self.batch,))]
        rows = self.rows[chosen[:, None] + self.index]
        return rows[:, : self.context], rows[:, self.context :]

    @staticmethod
    def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()
